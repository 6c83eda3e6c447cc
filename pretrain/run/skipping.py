"""train.skip: steps that are passed over."""

from __future__ import annotations

from collections.abc import Sequence


def steps_before(ranges: Sequence[Sequence[int]], step: int) -> int:
    """How many steps were done before the one, or the steps passed over together, that ended with `step`.

    ranges: train.skip, [first, last] of steps (from 1).
    """
    before = step
    while passed := [first for first, last in ranges if first <= before <= last]:
        before = min(passed) - 1
    return min(before, step - 1)
