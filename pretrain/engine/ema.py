"""The exponential moving average (EMA) of the parameters, split over the processes as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .ranges import LocalRange


class EMA:
    """Each process averages the ranges that it holds, without communication or waiting for the device.

    Update t (from 0) makes it d * average + (1 - d) * parameter with d = min(decay, (1 + t) / (10 + t)), so
    that the first weights are soon forgotten (num_updates of tf.train.ExponentialMovingAverage).

    live: returns the fp32 ranges of the trainable parameters as views, in the same order at every call.
    """

    def __init__(self, decay: float, live: Callable[[], Iterable[LocalRange]]) -> None:
        self.decay, self._live = decay, live
        self.ranges = [
            replace(item, key="ema/" + item.key.removeprefix("model/"), data=item.data.clone())
            for item in live()
        ]
        self._parameters: list[Tensor] | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimizer step `step` (from 0)."""
        if self._parameters is None:
            # Not earlier: FSDP moves uneven shards to their final memory at the first forward pass.
            self._parameters = [item.data for item in self._live()]
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([item.data for item in self.ranges], self._parameters, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the current parameters."""
        for average, live in zip(self.ranges, self._live(), strict=True):
            average.data.copy_(live.data)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the parameters; a second call restores both exactly."""
        for average, live in zip(self.ranges, self._live(), strict=True):
            parameter = live.data.clone()
            live.data.copy_(average.data)
            average.data.copy_(parameter)
