"""Steps that a run passes over (train.skip): their images count as seen, nothing is computed for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from data_tools.batch import TileBatch
from data_tools.stream import BatchStream

from .run_folder import log


class SkippingStream:
    """The stream that `open_at(step)` gives, opened anew behind each of the ranges [first, last] of steps."""

    def __init__(self, ranges: Sequence[Sequence[int]], open_at: Callable[[int], BatchStream]) -> None:
        self._ranges, self._open_at = ranges, open_at
        self._stream: BatchStream | None = None

    def seek(self, step: int) -> int:
        """How many steps are behind us when those to pass over after `step` steps are."""
        target = step
        while passed := [last for first, last in self._ranges if first <= target + 1 <= last]:
            target = max(passed)
        if target != step:
            log.info("steps %d to %d are passed over (train.skip)", step + 1, target)
            self.close()
        if self._stream is None:
            self._stream = self._open_at(target)
        return target

    def __next__(self) -> TileBatch:
        assert self._stream is not None
        return next(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
