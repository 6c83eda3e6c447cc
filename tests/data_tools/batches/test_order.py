from __future__ import annotations

import numpy as np
import pytest

from data_tools.batches.order import Order, default_layout
from data_tools.errors import DataError, UsageError
from data_tools.random_numbers import hash64, permute, uniform


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 4097, 65536])
def test_permute_is_a_permutation(n: int) -> None:
    for key in (0, 1, 2**63, hash64(3, 4)):
        assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permute_takes_a_key_for_each_element() -> None:
    i, keys = np.arange(50), hash64(7, np.arange(50))
    assert permute(i, 50, keys).tolist() == [int(permute(k, 50, keys[k])) for k in i]


def test_hash_and_order_are_the_same_on_every_machine_and_version() -> None:
    assert hash64(0) == 0xE220A8397B1DCDAF  # first output of splitmix64 with seed 0
    assert [hex(x) for x in hash64(5, -1, np.arange(2))] == [
        "0x89ac8b1e9b9abde8",
        "0x7cab6715bf558309",
    ]
    assert Order(3, 1000, 8).sample_at(np.arange(6)).tolist() == [556, 361, 849, 829, 457, 303]
    assert Order(3, 1003, 8, 16, 4).sample_at(10**12 + np.arange(6)).tolist() == [
        244,
        252,
        530,
        197,
        280,
        867,
    ]
    assert Order(3, 1000, 8).substitute(17, 1) == 88


def test_uniform_fills_the_unit_interval() -> None:
    draws = uniform(1, np.arange(100_000))
    assert 0 <= draws.min() < 1e-3 and 1 - 1e-3 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002


@pytest.mark.parametrize("lanes", [1, 8, 1024])
def test_each_epoch_is_an_exact_permutation_without_chunks(lanes: int) -> None:
    order = Order(seed=5, num_samples=1000, lanes=lanes)
    epochs = order.sample_at(np.arange(3000)).reshape(3, 1000)
    assert all(sorted(epoch) == list(range(1000)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).mean() > 0.9 and (epochs[1] != epochs[2]).mean() > 0.9
    assert (Order(6, 1000, lanes).sample_at(np.arange(1000)) != epochs[0]).mean() > 0.9


@pytest.mark.parametrize(("size", "chunk"), [(4096, 16), (4096 + 5, 16)])
def test_windows_read_every_chunk_once(size: int, chunk: int) -> None:
    order = Order(seed=1, num_samples=size, lanes=8, chunk=chunk, window=4)
    assert order.epoch_size == 4096
    epoch = order.sample_at(np.arange(order.epoch_size))  # 8 windows for each of the 8 lanes
    assert len(set(epoch.tolist())) == 4096
    again = order.sample_at(np.arange(order.epoch_size, 2 * order.epoch_size))
    assert len(set(again.tolist())) == 4096 and (epoch != again).mean() > 0.9
    lane = epoch[3::8][: 4 * chunk]  # one window of a lane: 4 chunks of neighbours, shuffled
    starts = np.sort(lane).reshape(4, chunk)[:, 0]
    gaps = np.diff(np.sort(lane))
    assert (gaps == 1).sum() >= 4 * (chunk - 1) - 4 and len(set(starts.tolist())) == 4
    assert (np.diff(lane) == 1).mean() < 0.2


def test_chunks_are_cut_anew_each_epoch_where_they_do_not_divide() -> None:
    order = Order(seed=1, num_samples=1003, lanes=1, chunk=10)
    left_out = [
        set(range(1003)) - set(order.sample_at(np.arange(e * 1000, e * 1000 + 1000)).tolist())
        for e in range(3)
    ]
    assert [len(samples) for samples in left_out] == [3, 3, 3]
    assert left_out[0] != left_out[1] != left_out[2]


@pytest.mark.parametrize(("lanes", "batch_size"), [(16, 64), (64, 64), (256, 64), (1, 64)])
def test_shares_of_all_ranks_make_up_the_batch(lanes: int, batch_size: int) -> None:
    order = Order(0, 5000, lanes, chunk=4, window=2)
    order.check(batch_size)
    for step in (0, 7):
        batch = order.batch(step, batch_size)
        assert sorted(batch) == list(range(step * batch_size, (step + 1) * batch_size))
        assert (np.diff(batch % lanes) >= 0).all()
        for world in (1, 2, 4):
            shares = [order.share(step, batch_size, rank, world) for rank in range(world)]
            assert np.concatenate(shares).tolist() == batch.tolist()


def test_a_rank_keeps_to_its_own_lanes() -> None:
    order = Order(0, 5000, lanes=16)
    lanes = [set((order.share(step, 64, 1, 4) % 16).tolist()) for step in range(5)]
    assert all(found == {4, 5, 6, 7} for found in lanes)


def test_substitutes_differ_by_position_and_attempt() -> None:
    order = Order(0, 10**6, 8)
    found = {order.substitute(p, attempt) for p in range(20) for attempt in range(1, 6)}
    assert len(found) == 100 and all(0 <= sample < 10**6 for sample in found)


def test_values_that_cannot_work_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="no samples"):
        Order(0, 0, 8)
    with pytest.raises(UsageError, match=r"data\.chunk=11 .* set data\.chunk to 10"):
        Order(0, 10, 8, chunk=11)
    with pytest.raises(UsageError, match=r"data\.window must be at least 1, not 0"):
        Order(0, 10, 8, window=0)
    with pytest.raises(UsageError, match=r"data\.lanes=24 .*set data\.lanes to 16 or 32"):
        Order(0, 100, 24).check(64)
    with pytest.raises(UsageError, match=r"data\.lanes=100 .*set data\.lanes to 64 or 128"):
        Order(0, 1000, 100).check(64)
    with pytest.raises(UsageError, match=r"train\.batch_size=64 .*3 processes"):
        Order(0, 1000, 64).share(0, 64, 0, 3)


@pytest.mark.parametrize("size", [4096, 4096 + 5])
def test_the_chunk_of_a_sample_holds_it_and_no_position_has_another(size: int) -> None:
    order = Order(seed=1, num_samples=size, lanes=8, chunk=16, window=4)
    samples, chunks = order.locate(np.arange(order.epoch_size))
    assert np.array_equal(samples, order.sample_at(np.arange(order.epoch_size)))
    assert ((samples - chunks) % size < 16).all() and len(set(chunks.tolist())) == 4096 // 16
    later = order.locate(np.arange(order.window_size) + order.window_size)[1]
    assert len(set(later.tolist())) == 8 * 4  # one window further: as many chunks, all of them other
    assert not set(later.tolist()) & set(chunks[: order.window_size].tolist())


def test_the_layout_follows_where_the_shards_lie() -> None:
    assert default_layout(10**6, 4096, False, 110_000) == (1, 1, 4096)
    assert default_layout(10**7, 4096, True, 110_000) == (64, 8, 1024)
    assert default_layout(10**7, 4096, True, 12_000_000) == (1, 1, 4096)  # an image is a long piece
    assert default_layout(50_000, 1024, True, 2500) == (16, 8, 256)  # one window of each lane
    assert default_layout(500, 1024, True, 2500) == (1, 1, 1024)
    for batch_size in (1, 2, 6, 30, 37, 48, 32768):
        chunk, window, lanes = default_layout(10**9, batch_size, True, 110_000)
        assert lanes * 4 >= batch_size and batch_size % lanes == 0
        Order(0, 10**9, lanes, chunk, window).check(batch_size)
