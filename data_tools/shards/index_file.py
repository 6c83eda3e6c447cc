"""Reading the index of shards: its file, its tables, and what identifies the set of shards."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError, shown
from data_tools.shards.index import INDEX_NAME, NAMES_SHA256, Tables
from data_tools.shards.names import Shards, local_shards, relative, written
from data_tools.shards.samples import ROW
from data_tools.shards.urls import check_scheme, is_url

_TABLES = ("offsets", "labels", "numbers")
_NOT_IDENTITY = ("version", "left_out")  # in an entry of the shardlist: what may differ for the same shard


class NoIndex(UsageError):
    """There are shards, but no index of all of them."""


@dataclass(frozen=True)
class Index:
    """An index file. content: its JSON; tables: what is in the files beside it.

    file_sha256: of the file; part: whether the file lists more shards than these.
    """

    file: Path
    content: dict[str, Any]
    tables: Tables
    file_sha256: str
    part: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the index, in which its shards lie unless they have URLs."""
        return self.file.parent

    @property
    def shardlist(self) -> list[dict[str, Any]]:
        """What is said of each shard: url, nsamples, filesize and sha256."""
        return self.content["shardlist"]

    def identity(self) -> str:
        """A sha256 that is the same for the same shards, in the same order and with the same labels.

        User, password and query of a URL are not in it: they change when a URL is signed anew. For an index
        of version 0.1 without such URLs it is the sha256 of the file.
        """
        entries = [
            {key: value for key, value in entry.items() if key not in _NOT_IDENTITY}
            | ({"url": shown(entry["url"])} if is_url(entry["url"]) else {})
            for entry in self.shardlist
        ]
        tables = {
            key: self.content[key] | {"file": f"shardindex.{key}.npy"}
            for key in _TABLES
            if key in self.content
        }
        content = {key: value for key, value in self.content.items() if key != NAMES_SHA256}
        text = json.dumps(content | {"shardlist": entries} | tables, indent=1) + "\n"
        return hashlib.sha256(text.encode()).hexdigest()


def open_index(shards: Shards) -> Index:
    """The index of `shards`; of an index that lists others too, the part that is asked for.

    The shards are not opened. UsageError, saying what to do, if there is no valid index (NoIndex if there are
    shards); DataError for damaged tables.
    """
    paths = local_shards(shards)
    if paths is None:
        return _read(_file_of(shards))
    folder, names = relative(paths)
    indexes = [index for file in _files_in(folder) if (index := _read_if_valid(file))]
    wanted = set(names)
    listed = [{entry["url"] for entry in index.shardlist} for index in indexes]
    if exact := [i for i, found in zip(indexes, listed, strict=True) if found == wanted]:
        return max(exact, key=lambda index: index.file.stat().st_mtime_ns)
    if wider := [i for i, found in zip(indexes, listed, strict=True) if found > wanted]:
        return part_of(max(wider, key=lambda index: index.file.stat().st_mtime_ns), wanted)
    command = f"run python -m data_tools index {written(shards)}"
    most = max(listed, key=lambda found: len(found & wanted), default=set())
    new = sorted(wanted - most)
    if len(new) < len(names):
        raise NoIndex(
            f"{len(new)} of the {len(names)} shards of {written(shards)} are not in the index that lists the "
            f"others, the first: {new[0]}; if they came later, or belong together: {command}"
        )
    raise NoIndex(f"{written(shards)}: there is no index of these {len(names)} shards: {command}")


def _files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("shardindex*.json"))


def _file_of(shards: Shards) -> Path:
    """The index file of a folder, or the one that is named."""
    if not isinstance(shards, str | Path):
        shards = shards[0]  # a list of one folder, or of URLs
    if is_url(shards):
        check_scheme(str(shards))
        raise UsageError(
            f"{shown(str(shards))} is a URL: run python -m data_tools index URL --out DIR once, and give DIR "
            "instead (or set data.sequential=true, if the server sends no parts of files)."
        )
    path = Path(shards)
    file = path if path.suffix == ".json" else path / INDEX_NAME
    folder, name = file.parent, str(path)
    if path.is_file() and path.suffix != ".json":
        raise UsageError(f"{name} is no shard (*.tar) and no folder of shards: give one of these.")
    if not folder.is_dir() or (path.suffix == ".json" and not path.exists()):
        raise UsageError(f"{name} does not exist: make shards with python -m data_tools pack SRC DST.")
    if not file.is_file():
        if any(folder.glob("*.tar")):
            raise NoIndex(
                f"{folder} has shards but no {INDEX_NAME}: run python -m data_tools index {written(folder)}"
            )
        inside = sorted(file.parent for file in folder.glob(f"*/{INDEX_NAME}"))
        raise UsageError(
            f"{name} holds no shards itself: did you mean {' or '.join(map(str, inside[:3]))}?"
            if inside
            else f"{name} holds no shards: make some with python -m data_tools pack SRC DST."
        )
    return file


def _read_if_valid(file: Path) -> Index | None:
    try:
        return _read(file)
    except (UsageError, DataError):
        return None


def _read(file: Path) -> Index:
    data = file.read_bytes()
    try:
        content = json.loads(data)
        for entry in content["shardlist"]:
            _check_name(entry["url"], file)
            int(entry["nsamples"]), int(entry["filesize"]), int(entry.get("left_out", 0))
            if not isinstance(entry.get("version"), str | None):
                raise ValueError(f"version {entry['version']!r}")
        int(content["samples"]), int(content["num_classes"]), str(content["offsets"]["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise UsageError(
            f"{file} is damaged, or not an index of data_tools{why}: "
            f"run python -m data_tools index {written(file.parent)}"
        ) from error
    return Index(file, content, _open_tables(file, content), hashlib.sha256(data).hexdigest())


def _check_name(url: Any, file: Path) -> None:
    if is_url(url):
        check_scheme(url)
    elif (
        "\0" in url
        or ".." in Path(url).parts
        or Path(url).is_absolute()
        or (":" in url and not (file.parent / url).exists())
    ):
        raise UsageError(f"{file} names the shard {url!r}: only URLs and plain names beside it are read.")


def _open_tables(file: Path, content: dict[str, Any]) -> Tables:
    stem, size = file.name.removesuffix(".json"), content["samples"]
    rows = _open_table(file, f"{stem}.offsets.npy")
    if rows.dtype != ROW or rows.shape != (size,):
        raise _misfit(file, f"{stem}.offsets.npy")
    if "numbers" in content:
        numbers = _open_table(file, f"{stem}.numbers.npy")
        if numbers.dtype != np.float32 or numbers.shape != (size, content["num_classes"]):
            raise _misfit(file, f"{stem}.numbers.npy")
        return Tables(rows, numbers=numbers)
    if "labels" not in content:
        return Tables(rows)
    labels = _open_table(file, f"{stem}.labels.npy")
    if labels.dtype != np.int64 or len(labels) <= size or labels[size] != len(labels) - size - 1:
        raise _misfit(file, f"{stem}.labels.npy")
    return Tables(rows, labels, int(content["labels"]["max"]))


def _misfit(file: Path, name: str) -> DataError:
    return DataError(
        f"{file.parent / name} does not fit {file.name}: run python -m data_tools index "
        f"{written(file.parent)}"
    )


def _open_table(file: Path, name: str) -> NDArray[Any]:
    path = file.parent / name
    advice = f"run python -m data_tools index {written(file.parent)}"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {advice}") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): {advice}") from error


def part_of(index: Index, wanted: set[str]) -> Index:
    """The index of some of the shards of `index`, as if only these had been indexed."""
    kept = [number for number, entry in enumerate(index.shardlist) if entry["url"] in wanted]
    new_number = np.full(len(index.shardlist), -1, np.int32)
    new_number[kept] = np.arange(len(kept), dtype=np.int32)
    ids = np.flatnonzero(new_number[index.tables.rows["shard"]] >= 0)
    rows = np.array(index.tables.rows[ids])
    rows["shard"] = new_number[rows["shard"]]
    tables = Tables(rows)
    entries = [index.shardlist[number] for number in kept]
    content = index.content | {"shardlist": entries, "samples": len(rows)}
    if "left_out" in content:
        content["left_out"] = sum(entry.get("left_out", 0) for entry in entries)
    content["offsets"] = index.content["offsets"] | {"sha256": _sha256_as_npy(rows)}
    if index.tables.numbers is not None:
        tables = Tables(rows, numbers=np.array(index.tables.numbers[ids]))
        content["numbers"] = index.content["numbers"] | {"sha256": _sha256_as_npy(tables.numbers)}
    elif index.tables.labels is not None:
        tables = Tables(rows, *_labels_of(index.tables, ids))
        content["labels"] = index.content["labels"] | {
            "sha256": _sha256_as_npy(tables.labels),
            "max": tables.max_labels,
        }
    return Index(index.file, content, tables, index.file_sha256, part=True)


def _labels_of(tables: Tables, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The table of labels of some samples, and the most labels that one of them has."""
    assert tables.labels is not None
    first = len(tables.rows) + 1
    starts, counts = tables.labels[ids], tables.labels[ids + 1] - tables.labels[ids]
    values = [tables.labels[first + a : first + a + n] for a, n in zip(starts, counts, strict=True)]
    offsets = np.concatenate([[0], counts.cumsum()])
    return np.concatenate([offsets, *values]).astype(np.int64), int(counts.max(initial=0))


def _sha256_as_npy(table: Any) -> str:
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return hashlib.sha256(file.getbuffer()).hexdigest()
