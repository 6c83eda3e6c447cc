"""The index of WebDataset shards: where every image lies, and its labels.

shardindex.json          read by webdataset's wids too; with further keys, such as the sha256 of the tables
shardindex.offsets.npy   one ROW for each sample; can be memory-mapped
shardindex.labels.npy    only where samples have several labels: int64, samples + 1 offsets, then the labels
                         of all samples; those of sample i are offsets[i] to offsets[i + 1] of them
shardindex.numbers.npy   only where labels are fractions: float32 (samples, numbers of a sample)
classes.json             class names in the order of the labels; written by pack, or by hand

If no sample of a set has a label, all labels are -1. The shards lie in the folder of the index, or the
index has their URLs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError
from data_tools.shards.labels import NO_LABEL, parse_classes
from data_tools.shards.samples import Problem, Scan, scan_shard
from data_tools.shards.side_files import is_side_file
from data_tools.shards.storage import Storage

INDEX_NAME = "shardindex.json"
OFFSETS_NAME = "shardindex.offsets.npy"
LABELS_NAME = "shardindex.labels.npy"
NUMBERS_NAME = "shardindex.numbers.npy"
CLASSES_NAME = "classes.json"
_COMPRESSED = re.compile(r".*\.(tar\.[a-z0-9]+|tgz|tbz2?|txz)", re.IGNORECASE)
_SHOWN_DAMAGES = 10


@dataclass(frozen=True)
class Tables:
    """The tables of an index.

    rows: ROW (N,). labels: int64 as in shardindex.labels.npy, or None where each sample has one label.
    numbers: float32 (N, n), or None where labels are classes.
    """

    rows: NDArray[np.void]
    labels: NDArray[np.int64] | None = None
    max_labels: int = 1  # the most that a sample has
    numbers: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Summary:
    """What build_index() wrote.

    bytes: of all shards; problems: the samples that are left out; ignored: how many members are neither
    image, cls nor json.
    """

    samples: int
    shards: int
    bytes: int
    problems: tuple[Problem, ...]
    ignored: int


def build_index(folder: str | Path, urls: Sequence[str] = (), threads: int | None = None) -> Summary:
    """Write into `folder` the index of its *.tar files, or of the shards at `urls`.

    Each shard is read once, `threads` shards at a time. Where shards are damaged or without a sample, a
    DataError names all of them. A sample that cannot be used (no image, two images, no label or one that
    is not a number) is left out and reported.
    """
    folder = Path(folder)
    names = list(urls) if urls else shard_names(folder)
    folder.mkdir(parents=True, exist_ok=True)
    classes = load_classes(folder)
    storage = Storage(folder)
    found = list(scan_shards(storage, names, classes, threads))
    if damages := [str(error) for error in found if isinstance(error, DataError)]:
        raise DataError(_all_of(damages, len(names)))
    scans = [scan for scan in found if isinstance(scan, Scan)]
    tables = merge(scans)
    _write_atomically(folder / OFFSETS_NAME, lambda file: np.save(file, tables.rows, allow_pickle=False))
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [
            {"url": scan.name, "nsamples": int(count), "filesize": scan.size, "sha256": scan.sha256}
            for scan, count in zip(scans, _counts(tables, scans), strict=True)
        ],
        "samples": len(tables.rows),
        "num_classes": count_classes(tables, classes),
        "left_out": sum(len(scan.problems) for scan in scans),
        "offsets": {"file": OFFSETS_NAME, "sha256": _sha256_of(folder / OFFSETS_NAME)},
    }
    if _write_table(folder / LABELS_NAME, tables.labels):
        sha256 = _sha256_of(folder / LABELS_NAME)
        index["labels"] = {"file": LABELS_NAME, "sha256": sha256, "max": tables.max_labels}
    if _write_table(folder / NUMBERS_NAME, tables.numbers):
        index["numbers"] = {"file": NUMBERS_NAME, "sha256": _sha256_of(folder / NUMBERS_NAME)}
    write_json(folder / INDEX_NAME, index)
    problems = tuple(problem for scan in scans for problem in scan.problems)
    ignored = sum(scan.ignored for scan in scans)
    return Summary(len(tables.rows), len(names), sum(scan.size for scan in scans), problems, ignored)


def shard_names(folder: Path) -> list[str]:
    """The *.tar files of a folder in order of their names, but no side files such as ._a.tar.

    UsageError if there are none, DataError for a compressed one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give the folder that holds the *.tar shards.")
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    names = [name for name in found if not is_side_file(name)]
    if compressed := next((name for name in names if _COMPRESSED.fullmatch(name)), None):
        raise DataError(
            f"{folder / compressed} is compressed, so no sample can be read from its middle: "
            "unpack it to a plain .tar, or move it away."
        )
    if shards := [name for name in names if name.endswith(".tar")]:
        return shards
    raise UsageError(f"{folder} holds no *.tar shards: make some with python -m data_tools pack SRC DST.")


def load_classes(folder: Path) -> list[str] | None:
    """The class names in the order of their labels, or None if the folder has no classes.json.

    DataError if it is not a list of names.
    """
    path = folder / CLASSES_NAME
    return parse_classes(path.read_bytes(), str(path)) if path.exists() else None


def scan_shards(
    storage: Storage, names: Sequence[str], classes: list[str] | None, threads: int | None = None
) -> Iterator[Scan | DataError]:
    """The samples of each shard, or why it cannot be read, in order; `threads` shards at a time."""

    def scan(number: int) -> Scan | DataError:
        try:
            return scan_shard(storage, names[number], number, classes)
        except DataError as error:
            return error
        except OSError as error:
            return DataError(f"{storage.shown(names[number])} cannot be read: {error.strerror or error}")

    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), "shard-scan") as pool:
        yield from pool.map(scan, range(len(names)))


def merge(scans: list[Scan]) -> Tables:
    """The tables of all shards. If any sample has a label, those without one are left out as problems.

    DataError for a shard in which none is left, and for samples with different counts of numbers.
    """
    if any((scan.rows["label"] != NO_LABEL).any() or scan.several or scan.numbers for scan in scans):
        for scan in scans:
            _leave_out_unlabelled(scan)
    if any(scan.numbers for scan in scans):
        return _merge_numbers(scans)
    rows = np.concatenate([scan.rows for scan in scans])
    if not any(scan.several for scan in scans):
        return Tables(rows)
    counts = np.ones(len(rows), np.int64)
    several: dict[int, tuple[int, ...]] = {}
    start = 0
    for scan in scans:
        several |= {start + row: labels for row, labels in scan.several.items()}
        start += len(scan.rows)
    for row, labels in several.items():
        counts[row] = len(labels)
    starts = np.concatenate([[0], counts.cumsum()])
    values = np.repeat(rows["label"], counts)
    for row, labels in several.items():
        values[starts[row] : starts[row + 1]] = labels
    return Tables(rows, np.concatenate([starts, values]), int(counts.max()))


def _merge_numbers(scans: list[Scan]) -> Tables:
    """The tables of a set in which labels are numbers; whole labels become numbers too."""
    numbers: list[tuple[float, ...]] = []
    width = None
    for scan in scans:
        for row, label in enumerate(scan.rows["label"].tolist()):
            values = scan.numbers.get(row) or scan.several.get(row, (label,))
            width = len(values) if width is None else width
            if len(values) != width or not values:
                raise DataError(
                    f"{scan.name} has a sample with {len(values)} numbers as its label where others have "
                    f"{width}: give every sample the same number of them."
                )
            numbers.append(values)
    rows = np.concatenate([scan.rows for scan in scans])
    rows["label"] = NO_LABEL
    return Tables(rows, numbers=np.array(numbers, np.float32))


def count_classes(tables: Tables, classes: list[str] | None) -> int:
    """The number of class names, or else the highest label + 1; for numbers, how many each sample has."""
    if tables.numbers is not None:
        return tables.numbers.shape[1]
    if classes:
        return len(classes)
    values = tables.rows["label"] if tables.labels is None else tables.labels[len(tables.rows) + 1 :]
    return int(values.max(initial=NO_LABEL)) + 1


def _leave_out_unlabelled(scan: Scan) -> None:
    reason = "no label (KEY.cls, or KEY.json with a label)"
    scan.problems += [Problem(scan.name, key, reason) for key in scan.unlabelled.values()]
    kept = np.ones(len(scan.rows), bool)
    kept[list(scan.unlabelled)] = False
    moved = kept.cumsum() - 1
    scan.several = {int(moved[row]): labels for row, labels in scan.several.items()}
    scan.numbers = {int(moved[row]): labels for row, labels in scan.numbers.items()}
    scan.rows, scan.unlabelled = scan.rows[kept], {}
    if not len(scan.rows):
        raise DataError(f"{scan.name} holds no labelled sample while other shards do.")


def _counts(tables: Tables, scans: list[Scan]) -> NDArray[np.int64]:
    return np.bincount(tables.rows["shard"], minlength=len(scans))


def _all_of(damages: list[str], shards: int) -> str:
    if len(damages) == 1:
        return damages[0]
    lines = damages[:_SHOWN_DAMAGES]
    more = [f"and {len(damages) - len(lines)} more"] if len(damages) > len(lines) else []
    return "\n  ".join([f"{len(damages)} of {shards} shards cannot be used:", *lines, *more])


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON in ASCII. The file gets its name only when it is complete."""
    data = (json.dumps(content, indent=1) + "\n").encode()
    _write_atomically(path, lambda file: file.write(data))


def _write_table(path: Path, table: NDArray[Any] | None) -> bool:
    """Write a table, or remove the file if there is no table; returns whether there is one."""
    if table is None:
        path.unlink(missing_ok=True)
        return False
    _write_atomically(path, lambda file: np.save(file, table, allow_pickle=False))
    return True


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)
