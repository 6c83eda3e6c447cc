"""The batches of one rank: an endless stream for training, or one pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.augment.mix import Mix
from data_tools.batches.mixture import Mixture
from data_tools.batches.order import Order
from data_tools.batches.prefetch import Map, Prefetch
from data_tools.errors import DataError, UsageError
from data_tools.images.decode import DecodeError, Picture, open_image
from data_tools.shards.shard_set import ShardSet
from data_tools.tile_batch import BadSample, TileBatch

# (picture, position) -> tiles (n, C, S, S), rows, columns
Transform = Callable[[Picture, int], tuple[NDArray[np.uint8], int, int]]

# Positions, samples and first samples of chunks of a micro-batch, each (micro_batch_size,).
_Task = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

_MAX_SUBSTITUTES = 100
_COLOURS = 3
# Positions whose samples are computed in one call: in small calls each costs ten times as much.
ORDER_BLOCK = 2048


@dataclass(frozen=True)
class Share:
    """Which images a process gets: those of `rank` among `world_size` ranks, micro_batch_size at a time."""

    micro_batch_size: int
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Decoding:
    """How encoded images become batches.

    max_pixels: larger images count as unreadable. tile_size: the side S of a tile in pixels. threads: how
    many decode; with 0 the calling thread does. prefetch: how many batches are made ahead. pin: whether
    batches are in pinned memory.
    """

    max_pixels: int
    tile_size: int
    threads: int = 4
    prefetch: int = 2
    pin: bool = False


@dataclass(frozen=True)
class Item:
    """One image of a batch: tiles (n, C, S, S); the other fields are explained in TileBatch."""

    tiles: NDArray[np.uint8]
    rows: int
    columns: int
    label: int | NDArray[np.int64] | NDArray[np.float32]  # one label, a row of several, or a row of numbers
    position: int
    sample: int
    weight: float = 1.0
    bad: tuple[BadSample, ...] = ()


class BatchStream:
    """Endless batches, made ahead in threads: iterate, then call close(), or use it in a `with` statement."""

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
        """End the threads. next() raises StopIteration from then on."""
        self._batches.close()


class TrainStream(BatchStream):
    """The endless training batches of one rank.

    Step s of rank r has the positions order.share(s, batch_size, r, world_size), cut into micro-batches in
    order; the first one is start_step. A batch is a pure function of (shards, order, transform, step):
    threads, prefetch and world_size do not change an image, its place in the global batch or its
    augmentation. An unreadable sample is replaced by order.substitute() and reported in TileBatch.bad;
    the substitute is augmented as its position demands. With `mix`, neighbours in the global batch are
    mixed in pairs. UsageError for sizes that do not divide; DataError where 100 substitutes are
    unreadable too.
    """

    def __init__(
        self,
        shards: ShardSet | Mixture,
        order: Order | Mixture,
        transform: Transform,
        share: Share,
        decoding: Decoding,
        *,
        batch_size: int,
        start_step: int = 0,
        mix: Mix | None = None,
    ) -> None:
        micro_batch_size, rank, world_size = share.micro_batch_size, share.rank, share.world_size
        order.check(batch_size)
        if micro_batch_size < 1 or batch_size % (world_size * micro_batch_size):
            raise UsageError(
                f"train.batch_size={batch_size} is not a multiple of {world_size} processes x "
                f"train.micro_batch_size={micro_batch_size}: change one of the two."
            )
        if mix:
            mix.check(micro_batch_size)
        self._shards, self._order, self._transform, self._mix = shards, order, transform, mix
        self._decoding = decoding

        def micro_batches() -> Iterator[_Task]:
            ahead = max(1, ORDER_BLOCK * world_size // batch_size)
            for first in count(start_step, ahead):
                steps = range(first, first + ahead)
                positions = np.concatenate([order.share(s, batch_size, rank, world_size) for s in steps])
                later = order.locate(positions + order.window_size)[1]
                columns = (positions, *order.locate(positions), later)
                rows = (column.reshape(-1, micro_batch_size) for column in columns)
                for places, samples, chunks, soon in zip(*rows, strict=True):
                    shards.prefetch(soon)
                    yield places, samples, chunks

        self._batches = Prefetch(micro_batches(), self._build, decoding.threads, decoding.prefetch)

    def _build(self, task: _Task, map_: Map) -> TileBatch:
        jobs = list(zip(*(column.tolist() for column in task), strict=True))
        batch = assemble(map_(self._load, jobs), self._decoding)
        return self._mix(batch, map_, self._decoding.pin) if self._mix else batch

    def _load(self, job: tuple[int, int, int | None]) -> Item:
        position, sample, chunk = job
        bad: list[BadSample] = []
        for attempt in range(1, _MAX_SUBSTITUTES + 2):
            try:
                picture = open_image(self._shards.read(sample, chunk), self._decoding.max_pixels)
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
    """Every sample exactly once over all ranks, in groups that do not depend on the number of ranks.

    Group g is samples g * micro_batch_size to (g + 1) * micro_batch_size - 1; rank g mod world_size reads
    it. All ranks yield len(self) batches; a rank without a group left yields one black image of weight
    0. An unreadable image is black and of weight 0 too, and is reported in TileBatch.bad. Each
    iteration is a new pass; leaving it early ends its threads.
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        share: Share,
        decoding: Decoding,
    ) -> None:
        self._shards, self._transform, self._share, self._decoding = shards, transform, share, decoding

    def __len__(self) -> int:
        groups = -(-len(self._shards) // self._share.micro_batch_size)
        return -(-groups // self._share.world_size)

    def __iter__(self) -> Iterator[TileBatch]:
        world_size = self._share.world_size
        groups = range(self._share.rank, len(self) * world_size, world_size)
        batches = Prefetch(groups, self._build, self._decoding.threads, self._decoding.prefetch)
        try:
            yield from batches
        finally:
            batches.close()

    def _build(self, group: int, map_: Map) -> TileBatch:
        size = self._share.micro_batch_size
        samples = range(group * size, min((group + 1) * size, len(self._shards)))
        return assemble(map_(self._load, samples) or [self._black(0)], self._decoding)

    def _load(self, sample: int) -> Item:
        try:
            picture = open_image(self._shards.read(sample), self._decoding.max_pixels)
            tiles, rows, columns = self._transform(picture, sample)
        except DecodeError as error:
            return self._black(sample, (_bad_sample(self._shards, sample, error),))
        return Item(tiles, rows, columns, _label(self._shards, sample), sample, sample)

    def _black(self, sample: int, bad: tuple[BadSample, ...] = ()) -> Item:
        size = self._decoding.tile_size
        tiles = np.zeros((1, _COLOURS, size, size), np.uint8)
        return Item(tiles, 1, 1, _label(self._shards, sample), sample, sample, 0.0, bad)


def _label(shards: ShardSet | Mixture, sample: int) -> int | NDArray[np.int64] | NDArray[np.float32]:
    if shards.multilabel or shards.numeric:
        return shards.label_row(sample)
    return shards.label(sample)


def _bad_sample(shards: ShardSet | Mixture, sample: int, error: DecodeError) -> BadSample:
    return BadSample(sample, shards.key(sample), shards.shard_name(sample), str(error))


def assemble(items: list[Item], decoding: Decoding, passed_over: tuple[BadSample, ...] = ()) -> TileBatch:
    """One batch of these images. passed_over: further samples for TileBatch.bad, which are in no item.

    The tiles are (T, S, S, C) in memory, as images are decoded: torch's channels_last. Each batch has
    memory of its own, because earlier batches may still be on their way to the device. Where it is pinned,
    torch's caching allocator knows when such a copy has ended.
    """
    counts = [len(item.tiles) for item in items]
    shape = (sum(counts), decoding.tile_size, decoding.tile_size, _COLOURS)
    tiles = torch.empty(shape, dtype=torch.uint8, pin_memory=decoding.pin).permute(0, 3, 1, 2)
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
    return batch.pinned() if decoding.pin else batch
