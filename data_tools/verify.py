"""Finds what is wrong in indexed shards, and says whether they suit a number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError
from data_tools.images.decode import DecodeError, decode
from data_tools.shards.index import LABELS_NAME, NUMBERS_NAME, OFFSETS_NAME, rules_of, scan_shards
from data_tools.shards.labels import LabelRules
from data_tools.shards.samples import Problem, Scan
from data_tools.shards.shard_set import ShardSet, load_index, size_problem
from data_tools.shards.storage import Storage
from data_tools.shards.tables import merge, settle

_DECODE_AHEAD = 1024
_READ_BYTES = 8 << 20  # in a shorter read by range, waiting takes longer than the transfer


def verify(path: str | Path, *, decode_images: bool, max_pixels: int, threads: int) -> Iterator[Problem]:
    """Every problem of the indexed shards at `path`, shard by shard.

    Checks sizes, sha256 and tar headers; names the samples that the index leaves out; compares the index
    with the shards. With decode_images every image is decoded too, if the shards and the index are sound;
    one of more than max_pixels is a problem. UsageError if there are no indexed shards.
    """
    folder, index, _ = load_index(path)
    storage, listed = Storage(folder), index["shardlist"]
    rules = LabelRules(index.get("label_key"), numbers="numbers" in index, allow_unlabelled=True)
    rules, names_from = rules_of(folder, rules)
    found = scan_shards(storage, [entry["url"] for entry in listed], rules.key, threads)
    scans: list[Scan] = []
    damaged = False
    for entry, scan in zip(listed, found, strict=True):
        reason = size_problem(storage, entry)
        if isinstance(scan, DataError):
            reason = reason or str(scan)
        elif not reason and scan.sha256 != entry.get("sha256"):
            reason = "its sha256 is not the one in the index: the content changed"
        elif not reason:
            scans.append(scan)
        if reason:
            damaged = True
            yield Problem(entry["url"], "", reason)
    if damaged:
        return
    settle(scans, rules, names_from, storage)
    tables = merge(scans)
    for scan in scans:
        yield from scan.problems
    shards = ShardSet.open(path)
    if not np.array_equal(tables.rows, shards.table):
        yield Problem(OFFSETS_NAME, "", "does not fit the shards: run python -m data_tools index")
    elif not _equal(tables.labels, shards.label_table):
        yield Problem(LABELS_NAME, "", "does not fit the shards: run python -m data_tools index")
    elif not _equal(tables.numbers, shards.numbers):
        yield Problem(NUMBERS_NAME, "", "does not fit the shards: run python -m data_tools index")
    elif decode_images:
        yield from _undecodable(shards, max_pixels, threads)


def _equal(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def balance(shards: ShardSet, ranks: int, workers: int) -> tuple[bool, str]:
    """Whether the shards suit `ranks` processes of `workers` threads, and a sentence about it.

    Each process reads single samples, so shards need not be of equal size nor many. Two things can be
    wrong: fewer samples than processes, and remote shards that are too small to be read in long pieces.
    """
    samples, files = len(shards), shards.num_shards
    mean = shards.mean_bytes * samples / files
    size = f"{files} shards of {mean / 1e6:.1f} MB on average"
    if samples < ranks:
        return False, (
            f"not balanced: {samples} samples for {ranks} ranks, so a batch repeats images: use at most "
            f"{samples} ranks, or more data"
        )
    if shards.remote and mean < _READ_BYTES:
        return True, (
            f"balanced, but slow: {size} cannot be read in pieces of {_READ_BYTES >> 20} MiB: pack them "
            "again with --shard-size 100MB or more"
        )
    needed = ranks * workers
    others = "" if files >= needed else f" (a reader of whole shards would need {needed} of them)"
    return True, (
        f"balanced: {samples / ranks:.1f} samples a rank and epoch on {ranks} ranks, dealt one by one from "
        f"{size}{others}; a global batch may be any multiple of {ranks} up to {samples // ranks * ranks}"
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
