"""What is wrong in a folder of indexed shards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_tools.errors import DataError
from data_tools.images import DecodeError, decode
from data_tools.index import (
    OFFSETS_NAME,
    Problem,
    load_classes,
    scan_shard,
    sha256_of,
    without_unlabelled,
)
from data_tools.shards import ShardSet, load_index, size_problem

_DECODE_AHEAD = 1024


def verify(path: str | Path, *, decode_images: bool, max_pixels: int, threads: int) -> Iterator[Problem]:
    """Every problem of the shards at `path`, shard by shard.

    Sizes, sha256 and tar headers are checked, the samples that the index had to leave out are
    named, and the index itself is compared with the shards. With decode_images every image is
    decoded, if nothing else is wrong with its shard. UsageError if there are no indexed shards.
    """
    folder, index, _ = load_index(path)
    classes = load_classes(folder)
    scans, paths = [], []
    for number, entry in enumerate(index["shardlist"]):
        name = entry["url"]
        try:
            if reason := size_problem(folder, entry):
                raise DataError(reason)
            scans.append(scan_shard(folder / name, number, classes))
            paths.append(folder / name)
            if sha256_of(folder / name) != entry.get("sha256"):
                raise DataError("its sha256 is not the one in the index: the content changed")
        except DataError as error:
            yield Problem(name, "", str(error))
    if len(scans) < len(index["shardlist"]):
        return
    rows = without_unlabelled(scans, paths)
    for scan in scans:
        yield from scan.problems
    shards = ShardSet.open(path)
    if not np.array_equal(np.concatenate(rows), shards.table):
        yield Problem(OFFSETS_NAME, "", "does not fit the shards: run python -m data_tools index")
    elif decode_images:
        yield from _undecodable(shards, max_pixels, threads)


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
