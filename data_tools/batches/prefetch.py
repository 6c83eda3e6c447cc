"""The results of tasks, in order; threads work on the next ones in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Map = Callable[[Callable, Sequence], list]  # (function, items) -> results, computed in threads

_MAX_ITEMS = 16  # in one call of a thread
_LONGEST_CLOSE = 5.0  # seconds


class Prefetch(Generic[Task, Result]):
    """Iterate over build(task, map) for every task, `prefetch` results ahead of the caller.

    build() passes the small parts of its work to the given map(function, items), which spreads them
    over `threads` threads. With threads = 0 the calling thread does everything. An exception in a thread
    is raised by next(). close() cancels the parts that are not running and waits some
    seconds for the others: one that waits for a busy server is left behind.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        build: Callable[[Task, Map], Result],
        threads: int,
        prefetch: int,
    ) -> None:
        self._tasks, self._build = iter(tasks), build
        self._threads, self._prefetch = threads, max(1, prefetch)
        self._ahead: deque[Future[Result]] = deque()
        if threads:
            self._workers = ThreadPoolExecutor(threads, "data-decode")
            # Two, so that images of the next result are decoded while this result is assembled.
            self._builders = ThreadPoolExecutor(2, "data-batch")

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if not self._threads:
            return self._build(next(self._tasks), lambda function, items: list(map(function, items)))
        self._fill()
        if not self._ahead:
            raise StopIteration
        result = self._ahead.popleft().result()
        self._fill()
        return result

    def close(self) -> None:
        """End the threads. next() raises StopIteration from then on."""
        self._tasks = iter(())
        if self._threads:
            closing = Thread(target=self._end_threads, daemon=True)
            closing.start()
            closing.join(_LONGEST_CLOSE)
        self._ahead.clear()

    def _end_threads(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._builders.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True)

    def _fill(self) -> None:
        while len(self._ahead) < self._prefetch:
            try:
                task = next(self._tasks)
            except StopIteration:
                return
            self._ahead.append(self._builders.submit(self._build, task, self._map))

    def _map(self, function: Callable, items: Sequence) -> list:
        # Several items a call: passing work to a thread costs about as much as decoding a 32-pixel image.
        size = min(_MAX_ITEMS, max(1, len(items) // (4 * self._threads)))
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        results = self._workers.map(lambda part: [function(item) for item in part], parts)
        return [result for part in results for result in part]
