"""train.skip: steps that are passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from data_tools.batches.stream import BatchStream
from data_tools.tile_batch import TileBatch

from .folder import log


def steps_before(ranges: Sequence[Sequence[int]], step: int) -> int:
    """How many steps were done before the one, or the steps passed over together, that ended with `step`.

    ranges: train.skip, [first, last] of steps (from 1).
    """
    before = step
    while passed := [first for first, last in ranges if first <= before <= last]:
        before = min(passed) - 1
    return min(before, step - 1)


class SkippingStream:
    """Training batches without those of the steps in train.skip, whose images count as seen.

    ranges: [first, last] of steps (from 1). open_at(step): the batches after `step` steps; it is called anew
    after each range.
    """

    def __init__(self, ranges: Sequence[Sequence[int]], open_at: Callable[[int], BatchStream]) -> None:
        self._ranges, self._open_at = ranges, open_at
        self._stream: BatchStream | None = None

    def seek(self, step: int) -> int:
        """Pass over the steps of train.skip after `step`; returns how many are then done or skipped."""
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
        """End the stream's threads."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
