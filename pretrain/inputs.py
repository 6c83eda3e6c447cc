"""What the configuration says about data, opened: the shards, their order and the batches of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np

from data_tools.augment.mix import Mix
from data_tools.augment.transforms import EvalTransform, TrainTransform
from data_tools.batches.mixture import Mixture, WeightedShards
from data_tools.batches.order import Order, default_layout
from data_tools.batches.sequential import SequentialShards, SequentialStream
from data_tools.batches.stream import BatchStream, Decoding, EvalStream, Share, TrainStream
from data_tools.errors import UsageError
from data_tools.images.tiles import Resample
from data_tools.shards.shard_set import ShardSet
from data_tools.tile_batch import TileBatch

from .config.batch_split import BatchSplit
from .config.checks import training_sources
from .config.schema import Config, DataConfig
from .model.variants import COLOURS
from .run.folder import RunFolder, log
from .run.processes import ALONE, World
from .run.stop import StopFlag
from .run.watchdog import Watchdog

# Not a setting, so that images are always evaluated in the same groups and with the same rounding.
EVAL_BATCH_SIZE = 64
EXAMPLE_BATCH_SIZE = 4  # small, as all attention weights are in memory

# Bytes of each process for chunks, which are read in one piece and kept until their samples are used.
CHUNK_MEMORY = 2 << 30


@dataclass(frozen=True)
class Inputs:
    """The opened training and evaluation shards of a run, and what depends on them.

    num_classes: outputs of the model. steps: of the whole run.
    """

    config: Config
    train: Mixture | SequentialShards
    val: ShardSet | None
    num_classes: int
    steps: int

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; None if there are none."""
        return self.train.classes

    def order_constants(self) -> dict[str, Any]:
        """All that the order of images depends on. A run that resumes must have the same."""
        return {"batch_size": self.config.train.batch_size, **self.train.constants()}

    def notes(self) -> list[str]:
        """What the user should know about the shards, a sentence each."""
        return [*self.train.notes, *(self.val.notes if self.val else ())]

    def order_text(self) -> str:
        """The order and the sources in one line."""
        return self.train.describe(self.config.train.batch_size)

    def epochs(self, steps: int) -> float | None:
        """How many epochs `steps` steps are; None if the size of the training data is not known."""
        size = self.train.epoch_size
        return None if size is None else steps * self.config.train.batch_size / size

    def training_samples(self, steps: int) -> int:
        """How many samples the training data has; if that is not known, how many images `steps` steps see."""
        size = self.train.num_samples
        return steps * self.config.train.batch_size if size is None else size

    def samples_of_step(self, step: int) -> dict[str, Any]:
        """The first and last position, and if known the keys, of the images of step `step` (from 1)."""
        size = self.config.train.batch_size
        first = (step - 1) * size
        row: dict[str, Any] = {"positions": [first, first + size - 1]}
        if isinstance(self.train, Mixture):
            samples = self.train.locate(np.arange(first, first + size))[0]
            row["keys"] = [self.train.key(sample) for sample in samples.tolist()]
        return row

    def name_of(self, sample: int) -> tuple[str, str]:
        """The shard and the key of a training sample; only for indexed shards."""
        assert isinstance(self.train, Mixture)
        return self.train.shard_name(sample), self.train.key(sample)

    def train_stream(self, split: BatchSplit, rank: int, start_step: int, pin: bool) -> BatchStream:
        """The micro-batches of process `rank` after `start_step` steps; pin: in page-locked memory."""
        data, seed = self.config.data, self.config.run.seed
        mixing = data.augment.mixup or data.augment.cutmix
        mix = Mix(seed, data.augment.mixup, data.augment.cutmix) if mixing else None
        share = Share(split.micro_batch_size, rank, split.ranks)
        decoding = Decoding(data.max_pixels, data.tile_size, data.workers, pin=pin)
        transform = TrainTransform(seed, data.tile_size, data.max_tiles, data.augment)
        if isinstance(self.train, SequentialShards):
            return SequentialStream(
                self.train, transform, share, decoding, seed=seed, start_step=start_step, mix=mix
            )
        if self.train.order.chunk > 1:
            self.train.keep_chunks(split.ranks, CHUNK_MEMORY)
        return TrainStream(
            self.train,
            self.train,
            transform,
            share,
            decoding,
            batch_size=split.batch_size,
            start_step=start_step,
            mix=mix,
        )

    def eval_stream(self, world: World) -> EvalStream:
        """The batches of data.val that this process evaluates."""
        assert self.val is not None
        return eval_stream(self.val, self.config.data, EVAL_BATCH_SIZE, world)

    def example_stream(self) -> EvalStream:
        """All images of data.val in small batches, the same on every process."""
        assert self.val is not None
        return eval_stream(self.val, self.config.data, EXAMPLE_BATCH_SIZE, ALONE)


@dataclass(frozen=True)
class Job:
    """What one process of a job works with: settings, data, its place among the processes, the run folder."""

    config: Config
    inputs: Inputs
    split: BatchSplit
    world: World
    folder: RunFolder
    stop: StopFlag
    watchdog: Watchdog


def eval_transform(data: DataConfig) -> EvalTransform:
    """How an image becomes tiles in an evaluation."""
    resample = cast(Resample, data.eval_resample)  # check() of config/checks.py allows no others
    return EvalTransform(data.tile_size, data.max_tiles, data.eval_resize, data.eval_crop, resample)


def eval_stream(shards: ShardSet, data: DataConfig, batch_size: int, world: World) -> EvalStream:
    """Every sample of `shards` once, without augmentation, in groups of `batch_size`."""
    return EvalStream(
        shards,
        eval_transform(data),
        Share(batch_size, world.rank, world.size),
        Decoding(data.max_pixels, data.tile_size, data.workers),
    )


def open_inputs(config: Config) -> Inputs:
    """Open the shards that `config.data` names. Raises UsageError or DataError."""
    val = ShardSet.open(config.data.val) if config.data.val else None
    train = _sequential(config, val) if config.data.sequential else _mixture(config)
    _check_labels(config, train)
    named = val is not None and val.classes and train.classes and config.objective.name != "masked_patches"
    if val is not None and named and val.classes != train.classes and isinstance(train, Mixture):
        raise val.other_classes(train.classes, train.sources[0].given)
    steps = config.train.steps
    if isinstance(train, Mixture) and not steps:
        steps = math.ceil(config.train.epochs * train.epoch_size / config.train.batch_size)
    return Inputs(config, train, val, _num_classes(config, train, val), steps)


def _mixture(config: Config) -> Mixture:
    data, batch_size = config.data, config.train.batch_size
    sources = [WeightedShards(ShardSet.open(path), weight) for path, weight in training_sources(data)]
    samples = sum(len(source.shards) for source in sources)
    size = sum(source.shards.mean_bytes * len(source.shards) for source in sources) / max(1, samples)
    remote = any(source.shards.remote for source in sources)
    chunk, window, lanes = default_layout(samples, batch_size, remote, size)
    if data.chunk or data.window:
        chunk, window, lanes = data.chunk or 1, data.window or 1, batch_size
    train = Mixture(sources, Order(config.run.seed, samples, data.lanes or lanes, chunk, window))
    train.check(batch_size)
    return train


def _sequential(config: Config, val: ShardSet | None) -> SequentialShards:
    """Shards without an index: the number of classes comes from model.num_classes or from data.val."""
    if config.objective.name not in ("softmax", "sigmoid"):
        raise UsageError(f"data.sequential=true: objective.name={config.objective.name} needs indexed shards")
    known = val.num_classes if val else 0
    names = val.classes if val else None
    return SequentialShards(config.data.train, config.model.num_classes or known, names)


def _check_labels(config: Config, train: Mixture | SequentialShards) -> None:
    """Raises UsageError for labels that the objective cannot take."""
    name = config.objective.name
    if isinstance(train, SequentialShards):  # checked when each sample is read
        return
    if train.numeric and name in ("softmax", "sigmoid"):
        raise UsageError(
            f"{train.folder}: its labels are numbers such as {train.labels_of(0)[0]:.4g}, which "
            f"objective.name=regression predicts; {name} takes classes"
        )
    if train.multilabel and name in ("softmax", "regression"):
        raise UsageError(
            f"{train.folder}: its images have several labels, which objective.name=sigmoid takes, and "
            f"{name} does not"
        )


def _num_classes(config: Config, train: Mixture | SequentialShards, val: ShardSet | None) -> int:
    """The number of outputs of the model. Raises UsageError if the configuration and the data disagree."""
    if config.objective.name == "masked_patches":
        return COLOURS
    if config.objective.name == "regression" and isinstance(train, Mixture):
        return _num_outputs(config, train, val)
    wanted = config.model.num_classes or train.num_classes
    for shards in (train, val):
        if shards is not None and wanted < shards.num_classes:
            raise UsageError(
                f"model.num_classes={wanted}: {shards.folder} has {shards.num_classes} classes; set it to "
                f"{shards.num_classes} or more"
            )
    if not train.num_classes:
        raise UsageError(
            "data.sequential=true: set model.num_classes, as shards without an index do not tell it"
            if config.data.sequential
            else f"{train.folder}: its samples have no labels; pack them with classes"
        )
    return wanted


def _num_outputs(config: Config, train: Mixture, val: ShardSet | None) -> int:
    """How many numbers a regression predicts: those of a label; 1 if labels are classes, taken as numbers."""
    if not train.num_classes:
        raise UsageError(f"{train.folder}: its samples have no labels; pack them with numbers")
    outputs = train.num_classes if train.numeric else 1
    if config.model.num_classes not in (None, outputs):
        raise UsageError(
            f"model.num_classes={config.model.num_classes}: {train.folder} has {outputs} number(s) as the "
            f"label of an image; set it to {outputs}, or leave it out"
        )
    if val is not None and (val.num_classes if val.numeric else 1) != outputs:
        raise UsageError(
            f"{val.folder}: its labels are not {outputs} number(s) as those of {train.folder} are"
        )
    return outputs


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
