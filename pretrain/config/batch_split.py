"""How the global batch is split over processes and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from data_tools.errors import UsageError

from .schema import TrainConfig


@dataclass(frozen=True)
class BatchSplit:
    """batch_size images = ranks x micro_batch_size x accumulation."""

    batch_size: int
    ranks: int
    micro_batch_size: int
    accumulation: int

    def __str__(self) -> str:
        return (
            f"{self.batch_size} images = {self.ranks} ranks × {self.micro_batch_size} × "
            f"{self.accumulation} accumulation"
        )


def split_batch(train: TrainConfig, ranks: int) -> BatchSplit:
    """How `ranks` processes share the batch.

    Raises UsageError, naming the nearest sizes that work, where the batch does not divide.
    """
    if train.batch_size % ranks:
        raise UsageError(
            f"train.batch_size={train.batch_size} does not divide by {ranks} processes; "
            f"nearest: {_nearest_multiples(train.batch_size, ranks)}"
        )
    share = train.batch_size // ranks
    micro = train.micro_batch_size or share
    if share % micro:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - micro))[:2]
        raise UsageError(
            f"train.micro_batch_size={micro} does not divide the {share} images of each process; "
            f"nearest: {' or '.join(str(n) for n in sorted(nearest))}"
        )
    return BatchSplit(train.batch_size, ranks, micro, share // micro)


def _nearest_multiples(value: int, step: int) -> str:
    below = value // step * step
    return " or ".join(str(n) for n in (below, below + step) if n)
