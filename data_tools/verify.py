"""Finds what is wrong in shards, and says whether they suit a number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError, counted
from data_tools.images.decode import DecodeError, decode
from data_tools.shards.freshness import note_of_added, note_of_classes, shard_problem
from data_tools.shards.index import CLASSES_NAME, scan_shards, understand
from data_tools.shards.index_file import Index, NoIndex, open_index
from data_tools.shards.labels import LabelRules
from data_tools.shards.names import Shards, local_shards, relative, shards_in
from data_tools.shards.samples import Problem, Scan
from data_tools.shards.shard_set import ShardSet
from data_tools.shards.storage import Storage

_DECODE_AHEAD = 1024
_READ_BYTES = 8 << 20  # in a shorter read by range, waiting takes longer than the transfer


class Verification:
    """Every problem of some shards, found while one iterates over them. The rest is known afterwards.

    samples, shards: how many; labels: in words, how many classes or numbers, "" if that is not known;
    opened: the samples, None where the shards are not sound; note: what else the user should know, or None.
    """

    samples = shards = 0
    labels = ""
    opened: ShardSet | None = None
    note: str | None = None

    def __init__(self, shards: Shards, decode_images: bool, max_pixels: int, threads: int) -> None:
        self._given, self._threads = shards, threads
        self._decode_images, self._max_pixels = decode_images, max_pixels

    def __iter__(self) -> Iterator[Problem]:
        given = self._given
        index: Index | None = None
        try:
            index = open_index(given)
        except NoIndex as error:
            self.note = f"not compared with an index: {error}"
        folder, names = _listed(index) if index else _unindexed(given)
        storage, scans = Storage(folder), []
        rules = _rules(index)
        found = scan_shards(storage, names, rules.key, self._threads)
        for number, scan in enumerate(found):
            reason = _problem(storage, scan, index.shardlist[number] if index else None)
            if reason:
                yield Problem(names[number], "", reason)
            elif isinstance(scan, Scan):
                scans.append(scan)
        if len(scans) == len(names):
            try:
                self.opened = ShardSet.of_scans(storage, folder, understand(storage, folder, scans, rules))
            except DataError as error:
                yield Problem(str(folder), "", str(error))
            except UsageError as error:
                self.note = f"the labels were not compared: {error}"
        self.shards = len(names)
        if index:
            self.samples = index.content["samples"]
            self.labels = _in_words(index.content["num_classes"], "numbers" in index.content)
            self.note = note_of_added(index)
            if changed := note_of_classes(index):
                yield Problem(CLASSES_NAME, "", changed)
        else:
            self.samples = len(self.opened) if self.opened else sum(len(scan.rows) for scan in scans)
            self.labels = _in_words(self.opened.num_classes, self.opened.numeric) if self.opened else ""
        if self.opened:
            yield from self.opened.problems
            if index and (misfit := _misfit(index, self.opened)):
                yield misfit
            elif self._decode_images:
                yield from _undecodable(self.opened, self._max_pixels, self._threads)


def verify(shards: Shards, *, decode_images: bool, max_pixels: int, threads: int) -> Verification:
    """Every problem of the shards, shard by shard.

    Checks sizes, sha256 and tar headers; names the samples that are left out; compares the index, if there is
    one, with the shards. With decode_images every image is decoded too, if the shards and the index are
    sound; one of more than max_pixels is a problem. UsageError if there are no shards.
    """
    return Verification(shards, decode_images, max_pixels, threads)


def _in_words(outputs: int, numeric: bool) -> str:
    return f"{counted(outputs, 'number')} to predict" if numeric else counted(outputs, "class", "classes")


def _rules(index: Index | None) -> LabelRules:
    """What index was told of the labels, as its file shows."""
    content = index.content if index else {}
    return LabelRules(
        content.get("label_key"), numbers="numbers" in content, allow_unlabelled=True, one_set=True
    )


def _listed(index: Index) -> tuple[Path, list[str]]:
    return index.folder, [entry["url"] for entry in index.shardlist]


def _unindexed(shards: Shards) -> tuple[Path, list[str]]:
    """The folder and the names of shards without an index. UsageError if there are none."""
    paths = local_shards(shards)
    if paths is not None:
        return relative(paths)
    folder = Path(shards if isinstance(shards, str | Path) else shards[0])
    return folder, shards_in(folder)


def _problem(storage: Storage, scan: Scan | DataError, entry: dict[str, Any] | None) -> str | None:
    """What is wrong with a shard, which has this entry in the index if there is one; else None."""
    reason = shard_problem(storage, entry) if entry else None
    if isinstance(scan, DataError):
        return reason or str(scan)
    if not reason and entry and scan.sha256 != entry.get("sha256"):
        return "its sha256 is not the one in the index: the content changed"
    return reason


def _misfit(index: Index, found: ShardSet) -> Problem | None:
    """The first table of the index that is not what is in the shards."""
    tables = index.tables
    pairs = {
        "offsets": (found.table, tables.rows),
        "labels": (found.label_table, tables.labels),
        "numbers": (found.numbers, tables.numbers),
    }
    for name, (here, there) in pairs.items():
        if not _equal(here, there):
            file = f"{index.file.name.removesuffix('.json')}.{name}.npy"
            return Problem(file, "", "does not fit the shards: run python -m data_tools index")
    return None


def _equal(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def balance(shards: ShardSet, ranks: int, workers: int) -> tuple[bool, str]:
    """Whether the shards suit `ranks` processes of `workers` threads, and a sentence about it.

    Each process reads single samples, so shards need not be of equal size nor many. Two things can be
    wrong: fewer samples than processes, and remote shards that are too small to be read in long pieces.
    """
    samples, files = len(shards), shards.num_shards
    mean = shards.mean_bytes * samples / files
    size = f"{counted(files, 'shard')} of {mean / 1e6:.1f} MB on average"
    if samples < ranks:
        return False, (
            f"not balanced: {counted(samples, 'sample')} for {counted(ranks, 'rank')}, so a batch repeats "
            f"images: use at most {counted(samples, 'rank')}, or more data"
        )
    if shards.remote and mean < _READ_BYTES:
        return True, (
            f"balanced, but slow: {size} cannot be read in pieces of {_READ_BYTES >> 20} MiB: pack them "
            "again with --shard-size 100MB or more"
        )
    needed = ranks * workers
    others = "" if files >= needed else f" (a reader of whole shards would need {needed} of them)"
    return True, (
        f"balanced: {samples / ranks:.1f} samples a rank and epoch on {counted(ranks, 'rank')}, dealt "
        f"one by one from {size}{others}; "
        f"a global batch may be any multiple of {ranks} up to {samples // ranks * ranks}"
    )


def _undecodable(shards: ShardSet, max_pixels: int, threads: int) -> Iterator[Problem]:
    def check(i: int) -> str | None:
        try:
            decode(shards.read(i), max_pixels)
        except DecodeError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(shards), _DECODE_AHEAD):
            samples = range(start, min(start + _DECODE_AHEAD, len(shards)))
            for i, reason in zip(samples, pool.map(check, samples), strict=True):
                if reason:
                    yield Problem(shards.shard_name(i), shards.key(i), reason)
