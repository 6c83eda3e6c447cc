"""Images of a folder or zip to WebDataset shards, with their index and class names.

DST/shard-000000.tar ...   KEY.<ext>, the image as it was, and KEY.json, its label and path in SRC;
                           keys are serial numbers, so that no name in the source can matter
DST/classes.json           class names in the order of the labels
DST/shardindex.json, shardindex.offsets.npy
DST/pack.json              what was packed and how; an interrupted run goes on only with the same

All bytes are a function of the source and the options. Every file appears under its name only when
it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import DataError, UsageError
from data_tools.index import CLASSES_NAME, INDEX_NAME, OFFSETS_NAME, build_index, write_json
from data_tools.order import hash64, permute
from data_tools.sources import Entry, Labelled, Source, label_by_csv, label_by_folder, open_source

PLAN_NAME = "pack.json"
_OURS = re.compile(rf"(shard-\d{{6}}\.tar|{CLASSES_NAME}|{INDEX_NAME}|{OFFSETS_NAME}|{PLAN_NAME})(\.tmp)?")
_SPLIT, _SHUFFLE = 0, 1  # keys of the two permutations
_BLOCK = 512


@dataclass(frozen=True)
class Packed:
    """One folder of shards that was written; `ignored` counts files of the source left out."""

    folder: Path
    images: int
    classes: int
    shards: int
    bytes: int
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"packed {self.images} images, {self.classes} classes, {self.shards} shards, "
            f"{self.bytes / 1e6:.1f} MB -> {self.folder}"
        )


@dataclass(frozen=True)
class _Plan:
    """Everything that decides the bytes of one folder of shards."""

    images: int
    seed: int
    shuffle: bool
    shard_size: int
    sha256: str  # of the paths, sizes, labels and class names


def pack(
    src: str | Path,
    dst: str | Path,
    *,
    csv: str | Path | None = None,
    shard_size: int = 10**9,
    shuffle: bool = True,
    seed: int = 0,
    split: tuple[str, float] | None = None,
    on_images: Callable[[int, int], None] = lambda more, total: None,
) -> list[Packed]:
    """Pack the images of `src` into shards of at most about `shard_size` bytes in `dst`.

    split: (name, share) writes that share of the images to dst/name and the rest to dst/train.
    on_images(more, total) is called whenever `more` of `total` images have been written.
    UsageError for options that cannot work or a dst that holds something else; DataError for a
    source without images or one that changes while it is packed.
    """
    source, dst = open_source(src), Path(dst)
    labelled = label_by_csv(source, csv) if csv else label_by_folder(source)
    parts = {dst: labelled.entries}
    if split:
        name, share = split
        _check_folder(dst, {"train", name}.__contains__)
        rest, held_out = _divide(labelled.entries, share, seed)
        parts = {dst / "train": rest, dst / name: held_out}
    for folder in parts:
        _check_folder(folder, lambda name: bool(_OURS.fullmatch(name)))
    packed, total = [], len(labelled.entries)
    for folder, entries in parts.items():
        if shuffle:
            order = permute(np.arange(len(entries)), len(entries), hash64(seed, _SHUFFLE))
            entries = [entries[i] for i in order]
        plan = _plan(entries, labelled.classes, seed, shuffle, shard_size)
        _begin(folder, plan, labelled.classes)
        for number, first, last in _shards(entries, shard_size):
            path = folder / f"shard-{number:06d}.tar"
            if path.exists():
                on_images(last - first, total)
            else:
                _write_shard(path, source, entries[first:last], first, lambda: on_images(1, total))
        packed.append(_finish(folder, labelled))
    return packed


def _divide(entries: list[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    if len(entries) < 2:
        raise DataError("A single image cannot be split in two: leave out --split.")
    place = permute(np.arange(len(entries)), len(entries), hash64(seed, _SPLIT))
    held_out = place < min(max(round(share * len(entries)), 1), len(entries) - 1)
    pairs = list(zip(entries, held_out, strict=True))
    return [e for e, out in pairs if not out], [e for e, out in pairs if out]


def _plan(entries: list[Entry], classes: list[str], seed: int, shuffle: bool, shard_size: int) -> _Plan:
    content = hashlib.sha256(json.dumps(classes).encode())
    for entry in entries:
        content.update(_metadata(entry) + b"%d\n" % entry.size)
    return _Plan(len(entries), seed, shuffle, shard_size, content.hexdigest())


def _check_folder(folder: Path, allowed: Callable[[str], bool]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give a new folder for the shards.")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if other := [name for name in names if not allowed(name)]:
        raise UsageError(f"{folder} holds something else ({min(other)!r}): give a new or an empty folder.")


def _begin(folder: Path, plan: _Plan, classes: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN_NAME
    if path.exists():
        if json.loads(path.read_text()) != asdict(plan):
            raise UsageError(
                f"{folder} holds shards of another source or other options ({PLAN_NAME}): "
                "give a new folder, or delete this one."
            )
    elif shards := sorted(folder.glob("*.tar")):
        raise UsageError(f"{folder} already holds {shards[0].name}: give a new or an empty folder.")
    else:
        write_json(path, asdict(plan))
    write_json(folder / CLASSES_NAME, classes)


def _finish(folder: Path, labelled: Labelled) -> Packed:
    for left in folder.glob("*.tmp"):
        left.unlink()
    summary = build_index(folder)
    return Packed(
        folder,
        summary.samples,
        len(labelled.classes),
        summary.shards,
        summary.bytes,
        tuple(labelled.ignored),
    )


def _shards(entries: list[Entry], shard_size: int) -> Iterator[tuple[int, int, int]]:
    """(number, first, last) of each shard: entries[first:last], at least one."""
    number = first = size = 0
    for i, entry in enumerate(entries):
        blocks = -(-entry.size // _BLOCK) + -(-len(_metadata(entry)) // _BLOCK) + 2
        if size and size + blocks * _BLOCK > shard_size:
            yield number, first, i
            number, first, size = number + 1, i, 0
        size += blocks * _BLOCK
    yield number, first, len(entries)


def _write_shard(
    path: Path, source: Source, entries: list[Entry], first: int, on_image: Callable[[], None]
) -> None:
    import webdataset  # here, because it imports torch: a mistake is answered before that

    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        with webdataset.TarWriter(file, user="", group="", encoder=False, mtime=0) as writer:
            for key, entry in enumerate(entries, first):
                data = source.read(entry.path)
                if len(data) != entry.size:
                    raise DataError(
                        f"{entry.path!r} in {source.name} changed while it was packed: start again."
                    )
                extension = entry.path.rpartition(".")[2].lower()
                writer.write({"__key__": f"{key:09d}", extension: data, "json": _metadata(entry)})
                on_image()
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _metadata(entry: Entry) -> bytes:
    return json.dumps({"label": entry.label, "path": entry.path}).encode()
