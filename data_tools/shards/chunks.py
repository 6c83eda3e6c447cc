"""Chunks of samples read in one piece, kept while their samples are taken one by one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import Full, Queue

_READERS = 4  # chunks fetched ahead at the same time
_MAX_QUEUED = 16  # further ones are dropped: later positions ask for them again


class ChunkCache:
    """fetch(first) -> the bytes of each sample of the chunk, for the chunks used last.

    Holds at most about `memory` bytes. Thread-safe: a chunk that several threads want is fetched
    once, and those that come late wait for it. What fetch() raises is raised to each of them, and
    the next one tries again.
    """

    def __init__(self, fetch: Callable[[int], dict[int, bytes]], memory: int) -> None:
        self._fetch, self._memory = fetch, memory
        self._lock = threading.Lock()
        self._chunks: OrderedDict[int, Future[dict[int, bytes]]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._total = 0
        self._queued: set[int] = set()
        self._ahead: Queue[int] | None = None

    def get(self, first: int) -> dict[int, bytes]:
        """The samples of the chunk that begins at `first`, by number."""
        with self._lock:
            future = self._chunks.get(first)
            if waits := future is not None:
                self._chunks.move_to_end(first)
            else:
                future = self._chunks[first] = Future()
        if waits:
            return future.result()
        try:
            chunk = self._fetch(first)
        except BaseException as error:
            with self._lock:
                del self._chunks[first]
            future.set_exception(error)
            raise
        future.set_result(chunk)
        with self._lock:
            self._sizes[first] = size = sum(map(len, chunk.values()))
            self._total += size
            self._evict()
        return chunk

    def prefetch(self, firsts: Iterable[int]) -> None:
        """Begin to fetch those chunks that are not here, a few at a time, in threads of their own."""
        with self._lock:
            if self._ahead is None:
                self._ahead = Queue(_MAX_QUEUED)
                for _ in range(_READERS):  # daemons: the end of the program waits for no source
                    threading.Thread(target=self._fetch_ahead, args=(self._ahead,), daemon=True).start()
            for first in firsts:
                if first not in self._chunks and first not in self._queued:
                    try:
                        self._ahead.put_nowait(first)
                    except Full:
                        return
                    self._queued.add(first)

    def _fetch_ahead(self, queue: Queue[int]) -> None:
        while True:
            first = queue.get()
            with suppress(Exception):  # whoever needs the chunk tries again, and is told
                self.get(first)
            with self._lock:
                self._queued.discard(first)

    def _evict(self) -> None:
        while self._total > self._memory and len(self._sizes) > 1:
            oldest = next(first for first in self._chunks if first in self._sizes)  # others: on their way
            del self._chunks[oldest]
            self._total -= self._sizes.pop(oldest)
