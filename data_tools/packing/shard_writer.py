"""Writing images into shards of about one size, and going on behind the shards that are already there."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.packing.labelling import Entry
from data_tools.shards.tar import BLOCK, scan

_AHEAD = 4  # images prepared ahead for each worker


@dataclass(frozen=True)
class PackedImage:
    """What is written for one entry: the encoded image, its extension, and the content of KEY.json."""

    data: bytes
    extension: str
    metadata: bytes

    @property
    def size(self) -> int:
        """Bytes in the shard, headers included."""
        return sum(-(-len(part) // BLOCK) + 1 for part in (self.data, self.metadata)) * BLOCK


def metadata(entry: Entry) -> bytes:
    """The content of KEY.json: the label of an entry, if it has one, and its path in the source."""
    label = {} if entry.label is None else {"label": entry.label}
    return json.dumps(label | {"path": entry.path}).encode()


def write_shards(
    folder: Path,
    entries: list[Entry],
    shard_size: int,
    prepare: Callable[[Entry], PackedImage | None],
    workers: int,
    on_images: Callable[[int], None],
) -> list[int]:
    """Write the shards that are missing in `folder`. A shard is full when the next image would not fit.

    `workers` threads call prepare(entry) and nothing else; an entry for which it returns None is left out.
    on_images(n) is called whenever n more images are in shards. Returns the numbers of the entries that
    are in shards, which are their keys. Raises what prepare() raises.
    """
    number = 0
    written: list[int] = []
    while (path := _shard_path(folder, number)).exists():
        keys = _keys(path)
        on_images(len(keys))
        number, written = number + 1, written + keys
    start = written[-1] + 1 if written else 0
    with ThreadPoolExecutor(workers, "pack") as pool:
        prepared = enumerate(_ahead(pool, prepare, iter(entries[start:]), workers * _AHEAD), start)
        images = ((key, image) for key, image in prepared if image is not None)
        following = next(images, None)
        while following is not None:
            size = 0
            with _new_shard(_shard_path(folder, number)) as writer:
                while following is not None and (size == 0 or size + following[1].size <= shard_size):
                    key, image = following
                    writer.write(
                        {"__key__": f"{key:09d}", image.extension: image.data, "json": image.metadata}
                    )
                    size += image.size
                    written.append(key)
                    on_images(1)
                    following = next(images, None)
            number += 1
    return written


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Callable[[Entry], PackedImage | None],
    entries: Iterator[Entry],
    count: int,
) -> Iterator[PackedImage | None]:
    """prepare(entry) for every entry, in order; up to `count` of them are begun ahead."""
    waiting: deque[Future[PackedImage | None]] = deque(
        pool.submit(prepare, entry) for entry in islice(entries, count)
    )
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(prepare, entry) for entry in islice(entries, 1))
    finally:
        for future in waiting:
            future.cancel()


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def _keys(path: Path) -> list[int]:
    with open(path, "rb") as file:
        names = [member.name for member in scan(file, str(path), path.stat().st_size)]
    return [int(name.removesuffix(".json")) for name in names if name.endswith(".json")]


@contextmanager
def _new_shard(path: Path) -> Iterator[Any]:
    """webdataset's TarWriter. The shard gets its name only when it is complete."""
    import webdataset  # here, because it imports torch: wrong arguments are reported without that wait

    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        with webdataset.TarWriter(file, user="", group="", encoder=False, mtime=0) as writer:
            yield writer
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
