"""Chunks of samples read in one piece, kept while their samples are taken one by one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import Full, Queue

_READERS = 4  # chunks fetched ahead at the same time
_MAX_QUEUED = 16  # more are dropped: they are asked for again at later positions


class ChunkCache:
    """Keeps the chunks that were used last. fetch(first) returns {sample: its bytes} of a chunk.

    Holds about `memory` bytes at most. Thread-safe: a chunk that several threads want is fetched once,
    and the others wait for it. An exception of fetch() is raised in each of these threads; the next
    get() of that chunk tries again.
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
        """The chunk that begins at sample `first`: {sample: its bytes}. Raises what fetch() raises."""
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
        """Begin to fetch the chunks that are not held yet, a few at a time, in background threads."""
        with self._lock:
            if self._ahead is None:
                self._ahead = Queue(_MAX_QUEUED)
                for _ in range(_READERS):  # daemons: the program can end while one is reading
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
            with suppress(Exception):  # the thread that needs the chunk fetches it again and gets the error
                self.get(first)
            with self._lock:
                self._queued.discard(first)

    def _evict(self) -> None:
        while self._total > self._memory and len(self._sizes) > 1:
            oldest = next(first for first in self._chunks if first in self._sizes)  # others are not here yet
            del self._chunks[oldest]
            self._total -= self._sizes.pop(oldest)
