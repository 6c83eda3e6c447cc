"""From the configuration to the shards, the order and the streams of one process."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from data_tools.augment import EvalTransform, TrainTransform
from data_tools.errors import UsageError
from data_tools.order import Order
from data_tools.shards import ShardSet
from data_tools.stream import EvalStream, TrainStream

from .config import Config, DataConfig
from .engine.world import World
from .split import BatchSplit

# The same at any number of processes, so that images are evaluated in the same groups.
EVAL_BATCH_SIZE = 64


@dataclass(frozen=True)
class Inputs:
    """The opened training and evaluation shards of a run, and what follows from them."""

    config: Config
    train: ShardSet
    val: ShardSet | None
    order: Order
    num_classes: int
    steps: int

    @property
    def classes(self) -> list[str] | None:
        return self.train.classes

    def order_constants(self) -> dict[str, Any]:
        """All that the order of images depends on. A run keeps them for its whole life."""
        return {
            "batch_size": self.config.train.batch_size,
            **asdict(self.order),
            "index_sha256": self.train.index_sha256,
        }

    def train_stream(self, split: BatchSplit, rank: int, start_step: int, pin: bool) -> TrainStream:
        data = self.config.data
        return TrainStream(
            self.train,
            self.order,
            TrainTransform(self.order.seed, data.tile_size, data.max_tiles, data.augment),
            batch_size=split.batch_size,
            micro_batch_size=split.micro_batch_size,
            rank=rank,
            world_size=split.ranks,
            start_step=start_step,
            threads=data.workers,
            max_pixels=data.max_pixels,
            tile_size=data.tile_size,
            pin=pin,
        )

    def eval_stream(self, world: World) -> EvalStream:
        assert self.val is not None
        return eval_stream(self.val, self.config.data, EVAL_BATCH_SIZE, world)


def eval_stream(shards: ShardSet, data: DataConfig, batch_size: int, world: World) -> EvalStream:
    """Every sample of `shards` once, without augmentation, in groups of `batch_size`."""
    return EvalStream(
        shards,
        EvalTransform(data.tile_size, data.max_tiles, data.eval_resize),
        micro_batch_size=batch_size,
        rank=world.rank,
        world_size=world.size,
        threads=data.workers,
        max_pixels=data.max_pixels,
        tile_size=data.tile_size,
    )


def open_inputs(config: Config) -> Inputs:
    """Open what `config.data` names. Raises UsageError or DataError."""
    train = ShardSet.open(config.data.train)
    val = ShardSet.open(config.data.val) if config.data.val else None
    order = Order(
        seed=config.run.seed,
        num_samples=len(train),
        lanes=config.data.lanes or config.train.batch_size,
        chunk=config.data.chunk,
        window=config.data.window,
    )
    order.check(config.train.batch_size)
    if val is not None:
        _check_same_classes(config, train.classes, val.classes)
    steps = config.train.steps or math.ceil(config.train.epochs * order.epoch_size / config.train.batch_size)
    return Inputs(config, train, val, order, _num_classes(config, train, val), steps)


def _num_classes(config: Config, train: ShardSet, val: ShardSet | None) -> int:
    wanted = config.model.num_classes or train.num_classes
    for path, shards in ((config.data.train, train), (config.data.val, val)):
        if shards is not None and wanted < shards.num_classes:
            raise UsageError(
                f"model.num_classes={wanted}: {path} has {shards.num_classes} classes; set it to "
                f"{shards.num_classes} or more"
            )
    if not train.num_classes:
        raise UsageError(f"{config.data.train}: its samples have no labels; pack them with classes")
    return wanted


def _check_same_classes(config: Config, train: list[str] | None, val: list[str] | None) -> None:
    if train is None or val is None or train == val:
        return
    pairs = zip([*train, None], [*val, None], strict=False)
    label, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise UsageError(
        f"{config.data.val}: its classes.json differs from that of {config.data.train}: label {label} is "
        f"{b!r} there and {a!r} in training; pack both with the same classes"
    )
