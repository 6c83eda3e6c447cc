"""The index of WebDataset shards: where every image lies, and its labels.

shardindex.json          read by webdataset's wids too; with further keys, such as the sha256 of the tables
shardindex.offsets.npy   one ROW for each sample; can be memory-mapped
shardindex.labels.npy    only where samples have several labels: int64, samples + 1 offsets, then the labels
                         of all samples; those of sample i are offsets[i] to offsets[i + 1] of them
shardindex.numbers.npy   only where labels are fractions: float32 (samples, numbers of a sample)
classes.json             class names in the order of the labels; written by pack, by hand, or by index, if the
                         labels of the shards are names

If no sample of a set has a label, all labels are -1. The shards lie in the folder of the index, or the
index has their URLs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError
from data_tools.shards.class_names import parse_classes
from data_tools.shards.label_meaning import GIVEN, Meaning
from data_tools.shards.labels import NO_RULES, LabelRules
from data_tools.shards.names import shards_in
from data_tools.shards.roles import check_one_set, roles_of_shards
from data_tools.shards.samples import Problem, Scan, scan_shard
from data_tools.shards.storage import Storage
from data_tools.shards.tables import Tables, count_classes, merge, settle
from data_tools.shards.urls import is_url

INDEX_NAME = "shardindex.json"
OFFSETS_NAME = "shardindex.offsets.npy"
LABELS_NAME = "shardindex.labels.npy"
NUMBERS_NAME = "shardindex.numbers.npy"
CLASSES_NAME = "classes.json"
NAMES_SHA256 = "names_sha256"  # in an index: of the class names that it was made with
_SHOWN_DAMAGES = 10


@dataclass(frozen=True)
class Summary:
    """What build_index() wrote.

    bytes: of all shards; problems: the samples that are left out; ignored: how many members are neither
    image nor label; labels: what was taken for the label, and why; num_classes: see count_classes().
    """

    samples: int
    shards: int
    bytes: int
    problems: tuple[Problem, ...]
    ignored: int
    labels: str
    num_classes: int


@dataclass(frozen=True)
class ScannedShards:
    """The samples of all shards of a set, and what their labels mean."""

    scans: list[Scan]
    tables: Tables
    meaning: Meaning
    num_classes: int

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The samples that are left out."""
        return tuple(problem for scan in self.scans for problem in scan.problems)


def build_index(
    folder: str | Path,
    names: Sequence[str] = (),
    threads: int | None = None,
    *,
    stem: str = "shardindex",
    with_times: bool = True,
    rules: LabelRules = NO_RULES,
) -> Summary:
    """Write into `folder` the index of its *.tar files, or of some shards: names inside the folder, or URLs.

    stem: of the names of the files that are written. with_times: note when each local shard was written;
    without it the same shards give the same bytes. Each shard is read once, `threads` shards at a time.
    A sample that cannot be used (no image, two images, no label) is left out and reported. Where classes.json
    does not say them, the classes are those of the labels; if these are names, classes.json is written.
    Errors as read_shards().
    """
    folder = Path(folder)
    names = list(names) or shards_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    storage = Storage(folder)
    made_here = _made_here(folder, stem)
    found = read_shards(storage, folder, names, rules, threads, named=not made_here)
    scans, tables = found.scans, found.tables
    made_here = rules.classes is None and (made_here or not load_classes(folder))
    if made_here or rules.classes is not None:
        _write_classes(folder, found.meaning.classes)
    offsets, labels, numbers = (f"{stem}.{table}.npy" for table in ("offsets", "labels", "numbers"))
    _write_atomically(folder / offsets, lambda file: np.save(file, tables.rows, allow_pickle=False))
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [
            {"url": scan.name, "nsamples": int(count), "filesize": scan.size, "sha256": scan.sha256}
            | _details(storage, scan, with_times)
            for scan, count in zip(scans, _counts(tables, scans), strict=True)
        ],
        "samples": len(tables.rows),
        "num_classes": found.num_classes,
        "left_out": sum(len(scan.problems) for scan in scans),
        "offsets": {"file": offsets, "sha256": _sha256_of(folder / offsets)},
    }
    if made_here and found.meaning.classes:
        index["classes"] = {"file": CLASSES_NAME, "sha256": _sha256_of(folder / CLASSES_NAME)}
    if classes := load_classes(folder):
        index[NAMES_SHA256] = sha256_of_names(classes)
    if found.meaning.place is not None:
        index["label_key"] = found.meaning.place
    if _write_table(folder / labels, tables.labels):
        sha256 = _sha256_of(folder / labels)
        index["labels"] = {"file": labels, "sha256": sha256, "max": tables.max_labels}
    if _write_table(folder / numbers, tables.numbers):
        index["numbers"] = {"file": numbers, "sha256": _sha256_of(folder / numbers)}
    write_json(folder / f"{stem}.json", index)
    ignored = sum(scan.ignored for scan in scans)
    return Summary(
        *(len(tables.rows), len(names), sum(scan.size for scan in scans), found.problems, ignored),
        *(found.meaning.said, found.num_classes),
    )


def read_shards(
    storage: Storage,
    folder: Path,
    names: Sequence[str],
    rules: LabelRules = NO_RULES,
    threads: int | None = None,
    named: bool = True,
) -> ScannedShards:
    """The samples of some shards of a folder, or at URLs; named: with the classes of its classes.json.

    DataError that names all shards that are damaged or without a sample, or all labels that are no class (see
    LabelRules.allow_unlabelled); UsageError where the labels need one of the rules, and for several sets.
    """
    if not rules.one_set:
        check_one_set(folder, roles_of_shards(names))
    found = list(scan_shards(storage, names, rules.key, threads))
    if damages := [str(error) for error in found if isinstance(error, DataError)]:
        raise DataError(_all_of(damages, len(names)))
    return understand(storage, folder, [scan for scan in found if isinstance(scan, Scan)], rules, named)


def understand(
    storage: Storage, folder: Path, scans: list[Scan], rules: LabelRules, named: bool = True
) -> ScannedShards:
    """Shards that were read by scan_shards(), all of a set; otherwise as read_shards()."""
    if not rules.one_set:
        named_roles = roles_of_shards(scan.name for scan in scans)
        check_one_set(folder, {scan.name: named_roles[scan.name] or scan.roles for scan in scans})
    rules, names_from = rules_of(folder, rules) if named else (rules, GIVEN)
    meaning = settle(scans, rules, names_from, storage)
    tables = merge(scans)
    return ScannedShards(scans, tables, meaning, count_classes(tables, meaning.classes))


def _made_here(folder: Path, stem: str) -> bool:
    """Whether this index made classes.json of its labels, to be made anew with them.

    False if it was edited, or if other indexes of the folder use it too.
    """
    file = folder / f"{stem}.json"
    if any(other != file for other in folder.glob("shardindex*.json")):
        return False
    try:
        return json.loads(file.read_bytes())["classes"]["sha256"] == _sha256_of(folder / CLASSES_NAME)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_classes(folder: Path, classes: list[str] | None) -> None:
    if classes:
        write_json(folder / CLASSES_NAME, classes)
    elif load_classes(folder):
        (folder / CLASSES_NAME).unlink()


def rules_without_names(folder: Path, rules: LabelRules) -> LabelRules:
    """The rules without their classes, if a classes.json in the folder says what its labels mean."""
    return replace(rules, classes=None) if load_classes(folder) else rules


def rules_of(folder: Path, rules: LabelRules) -> tuple[LabelRules, str]:
    """The rules with the classes of the folder's classes.json, and where the classes come from."""
    classes = load_classes(folder)
    if not classes:
        return rules, GIVEN
    if rules.classes is not None and tuple(classes) not in (rules.classes, *rules.other_names):
        raise UsageError(
            f"{folder / CLASSES_NAME} has other classes than --classes: take one of the two away."
        )
    if rules.numbers:
        raise UsageError(
            f"{folder / CLASSES_NAME} names classes, but --numbers says that there are none: take it away."
        )
    return replace(rules, classes=tuple(classes)), CLASSES_NAME


def load_classes(folder: Path) -> list[str] | None:
    """The class names in the order of their labels, or None if the folder has no classes.json.

    DataError if it is nothing that parse_classes() reads.
    """
    path = folder / CLASSES_NAME
    try:
        return parse_classes(path.read_bytes(), str(path))[0]
    except FileNotFoundError:
        return None


def scan_shards(
    storage: Storage, names: Sequence[str], label_key: str | None = None, threads: int | None = None
) -> Iterator[Scan | DataError]:
    """The samples of each shard, or why it cannot be read, in order; `threads` shards at a time."""

    def scan(number: int) -> Scan | DataError:
        try:
            found = scan_shard(storage, names[number], number, label_key)
            if not is_url(names[number]):  # of a URL, every answer tells it
                storage.size(names[number])  # DataError if it changed meanwhile
            return found
        except DataError as error:
            return error
        except FileNotFoundError:
            return DataError(f"{storage.shown(names[number])} is missing.")

    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), "shard-scan") as pool:
        yield from pool.map(scan, range(len(names)))


def _details(storage: Storage, scan: Scan, with_times: bool) -> dict[str, Any]:
    """What an entry of the shardlist says of the state of a shard, beside its size and sha256."""
    details: dict[str, Any] = {"left_out": len(scan.problems)} if scan.problems else {}
    if with_times or is_url(scan.name):
        details["version"] = storage.version(scan.name)
    return details


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


def sha256_of_names(names: list[str]) -> str:
    """What an index keeps of the class names, whatever the form of their file."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


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
