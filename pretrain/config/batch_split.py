"""How the global batch is split over processes and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from data_tools.errors import UsageError, counted

from .fault import parse_fault
from .schema import Config, TrainConfig


@dataclass(frozen=True)
class BatchSplit:
    """batch_size images = ranks x micro_batch_size x accumulation."""

    batch_size: int
    ranks: int
    micro_batch_size: int
    accumulation: int

    def __str__(self) -> str:
        images, ranks = counted(self.batch_size, "image"), counted(self.ranks, "rank")
        return f"{images} = {ranks} × {self.micro_batch_size} × {self.accumulation} accumulation"


def split_batch(train: TrainConfig, ranks: int) -> BatchSplit:
    """How `ranks` processes share the batch.

    Raises UsageError, naming the nearest sizes that work, where the batch does not divide.
    """
    if train.batch_size % ranks:
        batch, near = f"train.batch_size={train.batch_size}", _nearest_multiples(train.batch_size, ranks)
        raise UsageError(
            f"{batch} does not divide by {counted(ranks, 'process', 'processes')}; nearest: {near}"
        )
    share = train.batch_size // ranks
    micro = train.micro_batch_size or share
    if share % micro:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - micro))[:2]
        raise UsageError(
            f"train.micro_batch_size={micro} does not divide the {counted(share, 'image')} of each process; "
            f"nearest: {' or '.join(str(n) for n in sorted(nearest))}"
        )
    return BatchSplit(train.batch_size, ranks, micro, share // micro)


def split_job(config: Config, ranks: int) -> BatchSplit:
    """`split_batch`, and UsageError for all else in the configuration that `ranks` processes cannot do."""
    split = split_batch(config.train, ranks)
    size = config.engine.shard_size
    if size and ranks % size:
        raise UsageError(
            f"engine.shard_size={size} does not divide the {counted(ranks, 'process', 'processes')}"
        )
    augment = config.data.augment
    if (augment.mixup or augment.cutmix) and split.micro_batch_size % 2:
        own = config.train.micro_batch_size
        key = f"train.micro_batch_size={own}" if own else f"train.batch_size={config.train.batch_size}"
        raise UsageError(
            f"{key}: a process computes {counted(split.micro_batch_size, 'image')} at a time, which is odd, "
            f"but data.augment.mixup and cutmix mix pairs: make it even"
        )
    fault = parse_fault(config.fault)
    if fault and fault.rank >= ranks:
        raise UsageError(f"fault={config.fault}: there is no rank {fault.rank} of {ranks}")
    return split


def _nearest_multiples(value: int, step: int) -> str:
    below = value // step * step
    return " or ".join(str(n) for n in (below, below + step) if n)
