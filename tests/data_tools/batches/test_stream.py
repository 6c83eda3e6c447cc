from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch

from data_tools.augment.mix import Mix
from data_tools.augment.transforms import EvalTransform, TrainTransform
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, EvalStream, Share, TrainStream
from data_tools.errors import DataError, UsageError
from data_tools.shards.shard_set import ShardSet
from data_tools.tile_batch import TileBatch, checksum
from pretrain.config.schema import AugmentConfig

BATCH, MICRO, SIZE = 16, 2, 16
MAX_PIXELS = 10**6
CROP = AugmentConfig(crop_scale=(0.3, 1.0), flip=True)


def train(
    shards: ShardSet,
    steps: range,
    world: int = 1,
    threads: int = 0,
    lanes: int = 8,
    batch_size: int = BATCH,
    micro_batch_size: int = MICRO,
    mix: Mix | None = None,
    pin: bool = False,
) -> list[TileBatch]:
    """The micro-batches of all ranks, step by step, rank by rank."""
    order = Order(1, len(shards), lanes)
    transform = TrainTransform(1, SIZE, 4, CROP)
    decoding = Decoding(MAX_PIXELS, SIZE, threads, pin=pin)
    start, per_step = steps.start, batch_size // world // micro_batch_size
    ranks = []
    for rank in range(world):
        share = Share(micro_batch_size, rank, world)
        with TrainStream(
            shards, order, transform, share, decoding, batch_size=batch_size, start_step=start, mix=mix
        ) as stream:
            batches = list(islice(stream, per_step * len(steps)))
        ranks.append([batches[i * per_step : (i + 1) * per_step] for i in range(len(steps))])
    return [batch for step in range(len(steps)) for rank in ranks for batch in rank[step]]


def content(batches: list[TileBatch]) -> list[tuple]:
    """Everything that training sees, image by image."""
    rows = []
    for batch in batches:
        assert batch.tiles.dtype == torch.uint8 and batch.tiles.is_contiguous(
            memory_format=torch.channels_last
        )
        assert batch.tiles.shape == (batch.tiles_per_image.sum(), 3, SIZE, SIZE)
        assert batch.tiles_per_image.tolist() == batch.grid.prod(dim=1).tolist()
        assert batch.weight.dtype == torch.float32
        columns = (batch.position, batch.sample, batch.labels, batch.weight, batch.grid)
        columns += (batch.partner_labels, batch.mix)
        rows += zip(checksum(batch), *(column.tolist() for column in columns), strict=True)
    return rows


def test_batches_do_not_depend_on_ranks_or_threads(make_shards) -> None:
    shards = make_shards([19, 12, 9])
    wanted = content(train(shards, range(4)))
    assert len(wanted) == 4 * BATCH and {row[4] for row in wanted} == {1.0}
    assert all(row[3] == row[2] % 5 for row in wanted)  # the label belongs to the sample
    assert len({tuple(row[5]) for row in wanted}) > 1  # images of several shapes
    for world, threads in ((1, 4), (2, 1), (2, 4), (4, 2)):
        assert content(train(shards, range(4), world, threads)) == wanted, (world, threads)


def test_mixed_batches_do_not_depend_on_ranks_threads_or_micro_batches(make_shards) -> None:
    shards = make_shards([19, 12, 9])
    plain, mix = content(train(shards, range(4))), Mix(1, 0.4, 0.4)
    wanted = content(train(shards, range(4), mix=mix))
    mixed = [row for row in wanted if row[7] < 1]
    assert len(mixed) > 20 and len(mixed) % 2 == 0
    by_position = {row[1]: row for row in plain}
    for a, b in zip(wanted[::2], wanted[1::2], strict=True):
        assert (a[7], a[6], b[6]) == ((b[7], b[3], a[3]) if a[7] < 1 else (1, a[3], b[3]))
        assert a[5] == b[5] or a[7] == 1  # only images of one grid
        for row in (a, b):
            assert row[1:6] == by_position[row[1]][1:6]
            assert (row[0] == by_position[row[1]][0]) == (row[7] == 1)
    for world, threads, micro in ((1, 4, 2), (2, 2, 4), (4, 2, 2), (1, 0, 16)):
        found = content(train(shards, range(4), world, threads, mix=mix, micro_batch_size=micro))
        assert found == wanted, (world, threads, micro)
    with pytest.raises(UsageError, match=r"train\.micro_batch_size=1 is odd"):
        train(shards, range(1), mix=mix, micro_batch_size=1)


def test_micro_batch_size_cuts_the_same_images(make_shards) -> None:
    shards = make_shards([40])
    batches = train(shards, range(2), threads=2, micro_batch_size=8)
    assert len(batches) == 4 and content(batches) == content(train(shards, range(2)))


def test_resuming_equals_an_uninterrupted_stream(make_shards) -> None:
    shards = make_shards([40])
    wanted = content(train(shards, range(6)))
    assert content(train(shards, range(3, 6), world=2, threads=2)) == wanted[3 * BATCH :]


def test_an_epoch_delivers_every_image_once(make_shards) -> None:
    shards = make_shards([30, 34])
    rows = content(train(shards, range(4), threads=3))
    assert sorted(row[2] for row in rows) == list(range(64))


@pytest.mark.parametrize("size", [7, 3, 11, 1, 5])
def test_sets_smaller_than_a_batch_repeat(make_shards, size: int) -> None:
    shards = make_shards([size])
    sizes = {"batch_size": 12, "micro_batch_size": 2, "lanes": 12}
    batches = train(shards, range(3), world=3, threads=2, **sizes)
    rows = content(batches)
    assert sorted(row[1] for row in rows) == list(range(36))
    first = [row[2] for row in sorted(rows, key=lambda row: row[1])][:size]
    assert sorted(first) == list(range(size))
    assert rows == content(train(shards, range(3), **sizes))


def test_a_bad_image_is_substituted_and_no_other_moves(make_shards) -> None:
    bad = frozenset({4, 17, 33})
    good = content(train(make_shards([40], name="good"), range(4)))
    shards = make_shards([40], bad, name="bad")
    batches = train(shards, range(4), threads=2)
    rows = content(batches)
    for row, wanted in zip(rows, good, strict=True):
        assert row[1] == wanted[1]
        assert row[2] not in bad if wanted[2] in bad else row == wanted
    found = {(b.sample, b.key, b.shard) for batch in batches for b in batch.bad}
    assert {number for number, _, _ in found} == bad
    assert (4, "00004", "part-000.tar") in found
    assert all("truncated" in b.reason for batch in batches for b in batch.bad)
    again = train(shards, range(4), world=2, threads=1)
    assert content(again) == rows
    assert [b for batch in again for b in batch.bad] == [b for batch in batches for b in batch.bad]


def test_a_set_of_bad_images_is_a_data_error_not_an_endless_loop(make_shards) -> None:
    shards = make_shards([6], frozenset(range(6)))
    for threads in (0, 2):
        with pytest.raises(DataError, match="too many unreadable images"):
            train(shards, range(1), threads=threads)


def test_an_exception_in_a_thread_reaches_the_consumer(make_shards) -> None:
    shards = make_shards([6])

    def broken(image: np.ndarray, position: int) -> tuple:
        raise RuntimeError(f"position {position}")

    decoding = Decoding(MAX_PIXELS, SIZE, threads=2)
    stream = TrainStream(shards, Order(0, 6, 4), broken, Share(4), decoding, batch_size=4)
    with stream, pytest.raises(RuntimeError, match="position"):
        next(stream)


def test_close_ends_the_threads_at_once(make_shards) -> None:
    shards = make_shards([40])

    def slow(image: np.ndarray, position: int) -> tuple:
        time.sleep(0.02)
        return np.zeros((1, 3, SIZE, SIZE), np.uint8), 1, 1

    before = threading.active_count()
    decoding = Decoding(MAX_PIXELS, SIZE, threads=2)
    stream = TrainStream(shards, Order(0, 40, 1), slow, Share(400), decoding, batch_size=400)
    threading.Timer(0.1, stream.close).start()
    start = time.monotonic()
    with pytest.raises(BaseException):  # noqa: B017 (cancelled, or refused by the closed pool)
        next(stream)
    stream.close()
    assert time.monotonic() - start < 2
    assert threading.active_count() <= before + 1  # the timer
    with pytest.raises(StopIteration):
        next(stream)


def test_sizes_that_do_not_divide_are_refused(make_shards) -> None:
    shards = make_shards([6])
    with pytest.raises(UsageError, match=r"train\.batch_size=16 .* 3 processes x .*=2"):
        train(shards, range(1), world=3)
    with pytest.raises(UsageError, match=r"data\.lanes=5"):
        train(shards, range(1), lanes=5)


def evaluate(shards: ShardSet, world: int, threads: int, micro: int = 4) -> list[list[TileBatch]]:
    """The batches of each rank."""
    decoding = Decoding(MAX_PIXELS, SIZE, threads)
    streams = [
        EvalStream(shards, EvalTransform(SIZE, 4), Share(micro, rank, world), decoding)
        for rank in range(world)
    ]
    ranks = [list(stream) for stream in streams]
    assert [len(batches) for batches in ranks] == [len(stream) for stream in streams]
    return ranks


@pytest.mark.parametrize("size", [21, 1, 4, 5])
def test_evaluation_reads_every_sample_once_in_the_same_groups(make_shards, size: int) -> None:
    shards = make_shards([size])
    groups = None
    for world, threads in ((1, 0), (1, 2), (2, 0), (2, 2), (4, 2), (3, 1)):
        ranks = evaluate(shards, world, threads)
        assert len({len(batches) for batches in ranks}) == 1
        batches = [batch for turn in zip(*ranks, strict=True) for batch in turn]
        real = [content([batch]) for batch in batches if batch.weight.sum() > 0]
        fillers = [batch for batch in batches if batch.weight.sum() == 0]
        assert [row[1] for rows in real for row in rows] == list(range(size))
        assert all(len(batch) == 1 and not batch.tiles.any() for batch in fillers)
        assert groups is None or real == groups
        groups = real


def test_evaluation_gives_a_bad_image_no_weight(make_shards) -> None:
    ranks = evaluate(make_shards([10], frozenset({3})), 2, 2)
    batches = [batch for batches in ranks for batch in batches]
    weights = {row[2]: row[4] for batch in batches for row in content([batch]) if row[4] == 0}
    assert 3 in weights and [b.sample for batch in batches for b in batch.bad] == [3]
    weighed = [int(s) for b in batches for s, w in zip(b.sample, b.weight, strict=True) if w]
    assert sorted(weighed) == [n for n in range(10) if n != 3]


def test_leaving_an_evaluation_early_ends_its_threads(make_shards) -> None:
    before = threading.active_count()
    stream = EvalStream(make_shards([40]), EvalTransform(SIZE, 1), Share(2), Decoding(MAX_PIXELS, SIZE))
    for _ in stream:
        break
    assert threading.active_count() == before


def test_all_that_goes_to_the_device_lies_in_pinned_memory(make_shards, monkeypatch) -> None:
    """On a machine without a device torch pins nothing, and refuses to: only what it is asked for is seen."""
    pinned: list[torch.Tensor] = []
    empty = torch.empty
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kind: empty(*shape, **kind))
    shards = make_shards([19, 12, 9])
    for mix in (None, Mix(1, 1.0, 0.0)):
        batch = train(shards, range(1), pin=True, mix=mix)[0]
        moved = (batch.tiles, batch.labels, batch.weight, batch.partner_labels, batch.mix)
        assert all(any(tensor is other for other in pinned) for tensor in moved)
