"""Counts the steps whose loss or gradient is not finite. The engine leaves out their update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from data_tools.errors import DivergedError

from .folder import RunFolder, log


class NonFinite:
    """limit: this many such steps in a row end the run. total: how many there were before.

    Whether a step was finite stays on the device until `look` fetches all steps at once. `look` is called
    where the training loop waits for the device anyway. streak: such steps in a row up to the last one.
    """

    def __init__(self, limit: int, total: int = 0) -> None:
        self.limit = limit
        self.streak = 0
        self.total = total
        self._longest = 0
        self._flags: list[tuple[int, Tensor]] = []

    def add(self, step: int, norm: Tensor) -> None:
        """norm: of the whole gradient, a scalar; it is not finite if the loss of any image is not."""
        self._flags.append((step, torch.isfinite(norm)))

    def look(self) -> list[int]:
        """The steps since the last call whose update was left out."""
        if not self._flags:
            return []
        finite = torch.stack([flag for _, flag in self._flags]).tolist()
        steps = [step for (step, _), good in zip(self._flags, finite, strict=True) if not good]
        longest = 0
        for good in finite:
            self.streak = 0 if good else self.streak + 1
            longest = max(longest, self.streak)
        self._flags.clear()
        self.total += len(steps)
        self._longest = longest
        return steps

    def note(self, folder: RunFolder, samples_of_step: Callable[[int], dict[str, Any]]) -> None:
        """Log the steps left out since the last call, and on rank 0 write their samples to nonfinite.jsonl.

        Raises DivergedError for too many in a row.
        """
        for step in self.look():
            if folder.rank == 0:
                folder.add_nonfinite({"step": step, **samples_of_step(step)})
            log.warning(
                "step %d: the loss or gradient is not finite, the step is left out; its samples stand in %s",
                step,
                folder.nonfinite,
            )
        self.check()

    def check(self) -> None:
        """Raises DivergedError if `look` found `limit` or more steps in a row."""
        if self._longest >= self.limit:
            raise DivergedError(
                f"the loss is not finite in {self._longest} steps in a row (train.max_nonfinite="
                f"{self.limit}); the checkpoints before them are whole: lower optim.lr, lengthen "
                f"optim.warmup_steps, or pass over the steps with train.skip",
                shared=True,
            )


def finite(value: float) -> float | None:
    """`value`, or None if it is not finite, which JSON cannot express."""
    return value if math.isfinite(value) else None
