from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_tools.shards.chunks import ChunkCache


def test_a_chunk_that_many_want_is_fetched_once() -> None:
    fetched, start = [], threading.Barrier(8)

    def fetch(first: int) -> dict[int, bytes]:
        fetched.append(first)
        return {first: b"%d" % first}

    cache = ChunkCache(fetch, memory=100)

    def read(_: int) -> bytes:
        start.wait()
        return cache.get(7)[7]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [b"7"] * 8
    assert fetched == [7]


def test_memory_is_bounded_and_the_chunks_used_last_stay() -> None:
    fetched = []

    def fetch(first: int) -> dict[int, bytes]:
        fetched.append(first)
        return {first: bytes(10)}

    cache = ChunkCache(fetch, memory=30)
    for first in (1, 2, 3, 1, 4, 1, 3):
        cache.get(first)
    assert fetched == [1, 2, 3, 4]
    cache.get(2)
    assert fetched == [1, 2, 3, 4, 2]


def test_a_failure_reaches_who_waits_and_is_tried_again_by_the_next() -> None:
    fails = [OSError("away"), OSError("still away")]

    def fetch(first: int) -> dict[int, bytes]:
        if fails:
            raise fails.pop(0)
        return {first: b"x"}

    cache = ChunkCache(fetch, memory=30)
    for text in ("away", "still away"):
        with pytest.raises(OSError, match=text):
            cache.get(1)
    assert cache.get(1) == {1: b"x"}


def test_what_is_fetched_ahead_is_not_fetched_again() -> None:
    fetched, wait = [], threading.Event()

    def fetch(first: int) -> dict[int, bytes]:
        wait.wait(10)
        fetched.append(first)
        return {first: b"x"}

    cache = ChunkCache(fetch, memory=1000)
    cache.prefetch([1, 2, 3])
    cache.prefetch([3, 2, 1])
    wait.set()
    for first in (1, 2, 3):
        cache.get(first)
    assert sorted(fetched) == [1, 2, 3]
