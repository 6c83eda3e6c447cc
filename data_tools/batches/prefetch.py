"""Results of a sequence of tasks, in order, some of them prepared ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Map = Callable[[Callable, Sequence], list]  # like map(), over the threads

_MAX_CHUNK = 16


class Prefetch(Generic[Task, Result]):
    """Iterate over build(task, map) for every task, `prefetch` results ahead of the caller.

    `build` hands the small pieces of its work to the `map` that it is given, which spreads them
    over `threads` threads. With threads = 0 everything happens in the caller. What a thread raises
    is raised by next(). close() waits for the pieces that are being worked on, not for those that
    wait.
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
            # Two, so that images of the next result are decoded while this one is put together.
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
        """End the threads; the iterator is exhausted from then on."""
        self._tasks = iter(())
        if self._threads:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._builders.shutdown(wait=True, cancel_futures=True)
            self._workers.shutdown(wait=True)
        self._ahead.clear()

    def _fill(self) -> None:
        while len(self._ahead) < self._prefetch:
            try:
                task = next(self._tasks)
            except StopIteration:
                return
            self._ahead.append(self._builders.submit(self._build, task, self._map))

    def _map(self, function: Callable, items: Sequence) -> list:
        # In chunks: one hand-over between threads costs about as much as a 32-pixel image.
        size = min(_MAX_CHUNK, max(1, len(items) // (4 * self._threads)))
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        parts = self._workers.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [result for part in parts for result in part]
