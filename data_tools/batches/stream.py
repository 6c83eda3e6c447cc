"""The loader of one rank: the batches of an endless training stream, and of one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.augment.mix import Mix
from data_tools.batches.order import Order
from data_tools.batches.prefetch import Map, Prefetch
from data_tools.errors import DataError, UsageError
from data_tools.images.decode import DecodeError, Picture, open_image
from data_tools.shards.shard_set import ShardSet
from data_tools.tile_batch import BadSample, TileBatch

Transform = Callable[[Picture, int], tuple[NDArray[np.uint8], int, int]]

# Positions, samples and chunks of a micro-batch, each (micro_batch_size,).
_Task = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

_MAX_SUBSTITUTES = 100
# Positions whose samples are computed at once: a few at a time cost ten times as much each.
ORDER_BLOCK = 2048


@dataclass(frozen=True)
class Item:
    """One image of a batch: tiles (n, C, S, S), and what TileBatch says about it."""

    tiles: NDArray[np.uint8]
    rows: int
    columns: int
    label: int | NDArray[np.int64] | NDArray[np.float32]  # one, or a row of several, or numbers
    position: int
    sample: int
    weight: float = 1.0
    bad: tuple[BadSample, ...] = ()


class BatchStream:
    """Endless batches, made ahead: iterate, then close() (or use it in a `with`)."""

    _batches: Prefetch[Any, TileBatch]

    def __iter__(self) -> Iterator[TileBatch]:
        return self

    def __next__(self) -> TileBatch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._batches.close()


class TrainStream(BatchStream):
    """The endless training batches of one rank.

    Step s of rank r is order.share(s, batch_size, r, world_size), cut into micro-batches in order.
    A batch is a pure function of (shards, order, transform, step): threads, prefetch and world_size
    do not change an image, its place in the global batch or its augmentation. An unreadable sample
    is replaced by order.substitute(), keeps its position as the key of the augmentation and is
    reported in TileBatch.bad. With `mix`, neighbours in the global batch are mixed in pairs.
    Raises UsageError for sizes that do not divide, DataError where 100 substitutes are unreadable
    too.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        transform: Transform,
        *,
        batch_size: int,
        micro_batch_size: int,
        max_pixels: int,
        tile_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        threads: int = 4,
        prefetch: int = 2,
        channels: int = 3,
        pin: bool = False,
        mix: Mix | None = None,
    ) -> None:
        order.check(batch_size)
        if micro_batch_size < 1 or batch_size % (world_size * micro_batch_size):
            raise UsageError(
                f"train.batch_size={batch_size} is not a multiple of {world_size} processes x "
                f"train.micro_batch_size={micro_batch_size}: change one of the two."
            )
        if mix:
            mix.check(micro_batch_size)
        self._shards, self._order, self._transform, self._mix = shards, order, transform, mix
        self._max_pixels = max_pixels
        self._tile_shape, self._pin = (channels, tile_size, tile_size), pin

        def micro_batches() -> Iterator[_Task]:
            ahead = max(1, ORDER_BLOCK * world_size // batch_size)
            for first in count(start_step, ahead):
                steps = range(first, first + ahead)
                positions = np.concatenate([order.share(s, batch_size, rank, world_size) for s in steps])
                later = order.locate(positions + order.window_size)[1]
                columns = (positions, *order.locate(positions), later)
                for *task, soon in zip(*(c.reshape(-1, micro_batch_size) for c in columns), strict=True):
                    shards.prefetch(soon)
                    yield tuple(task)

        self._batches = Prefetch(micro_batches(), self._build, threads, prefetch)

    def _build(self, task: _Task, map_: Map) -> TileBatch:
        jobs = list(zip(*(column.tolist() for column in task), strict=True))
        batch = assemble(map_(self._load, jobs), self._tile_shape, self._pin)
        return self._mix(batch, map_, self._pin) if self._mix else batch

    def _load(self, job: tuple[int, int, int | None]) -> Item:
        position, sample, chunk = job
        bad = []
        for attempt in range(1, _MAX_SUBSTITUTES + 2):
            try:
                picture = open_image(self._shards.read(sample, chunk), self._max_pixels)
                tiles, rows, columns = self._transform(picture, position)
            except DecodeError as error:
                bad.append(_bad_sample(self._shards, sample, error))
                sample, chunk = self._order.substitute(position, attempt), None
                continue
            return Item(tiles, rows, columns, _label(self._shards, sample), position, sample, bad=tuple(bad))
        raise DataError(
            f"{self._shards.folder} has too many unreadable images: sample {bad[0].key} and "
            f"{_MAX_SUBSTITUTES} substitutes failed (last: {bad[-1].reason}): run python -m "
            f"data_tools verify --decode {self._shards.folder}"
        )


class EvalStream:
    """Every sample exactly once over all ranks, in groups that do not depend on their number.

    Group g, samples [g*micro_batch_size, (g+1)*micro_batch_size), is read by rank g mod world_size.
    All ranks yield len(self) batches; a rank without a group left yields one black image of weight
    0. An unreadable image is black and has weight 0 too, and is reported in TileBatch.bad. Each
    iteration is a new pass; leaving it early ends its threads.
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        *,
        micro_batch_size: int,
        max_pixels: int,
        tile_size: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 4,
        prefetch: int = 2,
        channels: int = 3,
        pin: bool = False,
    ) -> None:
        self._shards, self._transform, self._max_pixels = shards, transform, max_pixels
        self._size, self._rank, self._world_size = micro_batch_size, rank, world_size
        self._threads, self._prefetch = threads, prefetch
        self._tile_shape, self._pin = (channels, tile_size, tile_size), pin

    def __len__(self) -> int:
        groups = -(-len(self._shards) // self._size)
        return -(-groups // self._world_size)

    def __iter__(self) -> Iterator[TileBatch]:
        groups = range(self._rank, len(self) * self._world_size, self._world_size)
        batches = Prefetch(groups, self._build, self._threads, self._prefetch)
        try:
            yield from batches
        finally:
            batches.close()

    def _build(self, group: int, map_: Map) -> TileBatch:
        samples = range(group * self._size, min((group + 1) * self._size, len(self._shards)))
        items = map_(self._load, samples) or [self._black(0)]
        return assemble(items, self._tile_shape, self._pin)

    def _load(self, sample: int) -> Item:
        try:
            picture = open_image(self._shards.read(sample), self._max_pixels)
            tiles, rows, columns = self._transform(picture, sample)
        except DecodeError as error:
            return self._black(sample, (_bad_sample(self._shards, sample, error),))
        return Item(tiles, rows, columns, _label(self._shards, sample), sample, sample)

    def _black(self, sample: int, bad: tuple[BadSample, ...] = ()) -> Item:
        tiles = np.zeros((1, *self._tile_shape), np.uint8)
        return Item(tiles, 1, 1, _label(self._shards, sample), sample, sample, 0.0, bad)


def _label(shards: ShardSet, sample: int) -> int | NDArray[np.int64] | NDArray[np.float32]:
    if shards.multilabel or shards.numeric:
        return shards.label_row(sample)
    return shards.label(sample)


def _bad_sample(shards: ShardSet, sample: int, error: DecodeError) -> BadSample:
    return BadSample(sample, shards.key(sample), shards.shard_name(sample), str(error))


def assemble(
    items: list[Item], tile_shape: tuple[int, int, int], pin: bool, passed_over: tuple[BadSample, ...] = ()
) -> TileBatch:
    """One batch; its own memory, as copies of earlier batches to the device may still be under way.

    The tiles lie in memory as they were decoded, (T, S, S, C): torch's channels_last.

    Pinned memory comes from torch's caching allocator, which knows when such a copy has ended.
    """
    counts = [len(item.tiles) for item in items]
    channels, *sides = tile_shape
    tiles = torch.empty((sum(counts), *sides, channels), dtype=torch.uint8, pin_memory=pin)
    tiles = tiles.permute(0, 3, 1, 2)
    np.concatenate([item.tiles for item in items], out=tiles.numpy())
    batch = TileBatch(
        tiles=tiles,
        tiles_per_image=torch.tensor(counts),
        grid=torch.tensor([(item.rows, item.columns) for item in items]),
        labels=torch.from_numpy(np.array([item.label for item in items])),
        weight=torch.tensor([item.weight for item in items]),
        position=torch.tensor([item.position for item in items]),
        sample=torch.tensor([item.sample for item in items]),
        bad=passed_over + tuple(bad for item in items for bad in item.bad),
    )
    return batch.pinned() if pin else batch
