from __future__ import annotations

import shutil
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from data_tools.augment.transforms import EvalTransform
from data_tools.batches.mixture import Mixture, WeightedShards, allot
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, Share, TrainStream
from data_tools.errors import UsageError
from data_tools.shards.shard_set import ShardSet


def mixture(sources: list[tuple[ShardSet, float]], lanes: int = 16, **options) -> Mixture:
    order = Order(5, sum(len(shards) for shards, _ in sources), lanes, **options)
    return Mixture([WeightedShards(*source) for source in sources], order)


@pytest.fixture
def two(make_shards) -> tuple[ShardSet, ShardSet]:
    return make_shards([60, 40], name="a"), make_shards([30], name="b")


@pytest.mark.parametrize("lanes", [4, 16, 64])
@pytest.mark.parametrize("layout", [{}, {"chunk": 5, "window": 2}])
def test_three_to_one_is_three_to_one_in_every_global_batch(two, lanes, layout) -> None:
    mix = mixture([(two[0], 3), (two[1], 1)], lanes, **layout)
    mix.check(64)
    assert mix.counts(64) == [48, 16]
    for step in (0, 1, 7, 10**9):
        samples = mix.sample_at(mix.batch(step, 64))
        assert Counter((samples >= 100).tolist()) == {False: 48, True: 16}
        for rank in range(4 if lanes > 4 else 1):  # each rank has its part of both
            share = mix.sample_at(mix.share(step, 64, rank, 4 if lanes > 4 else 1))
            assert set((share >= 100).tolist()) == {False, True}


def per_source(mix: Mixture, steps: int, batch_size: int) -> list[list[int]]:
    """The samples of each source in the order of the stream, numbered as in the source."""
    samples = mix.sample_at(np.arange(steps * batch_size)).tolist()
    starts = [0, *np.cumsum([len(shards) for shards in mix.sources]).tolist()]
    return [[s - a for s in samples if a <= s < b] for a, b in pairwise(starts)]


def test_the_order_of_a_source_does_not_know_of_the_others(two, make_shards) -> None:
    a, b = two
    other = make_shards([17, 5], name="other")
    with_b = per_source(mixture([(a, 3), (b, 1)]), 9, 64)
    with_other = per_source(mixture([(a, 3), (other, 1)]), 9, 64)
    last = per_source(mixture([(other, 1), (a, 3)]), 9, 64)
    assert with_b[0] == with_other[0] and sorted(with_b[0]) == sorted(last[1])
    alone = Order(5, len(a), lanes=12).sample_at(np.arange(len(with_b[0]))).tolist()
    assert sorted(with_b[0]) == sorted(alone)
    for shards, samples in zip((a, b), with_b, strict=True):  # each has epochs of its own
        n = len(shards)
        assert sorted(samples[:n]) == list(range(n))


def test_a_mixture_of_one_is_the_source(two) -> None:
    a, _ = two
    for layout in ({}, {"chunk": 8, "window": 2}):
        mix, order = mixture([(a, 2.5)], 8, **layout), Order(5, 100, 8, **layout)
        positions = np.arange(10**12, 10**12 + 500)
        assert np.array_equal(mix.locate(positions), order.locate(positions))
        assert mix.index_sha256 == a.index_sha256 and mix.epoch_size == order.epoch_size
        assert mix.substitute(3, 1) == order.substitute(3, 1)


def test_samples_are_those_of_their_source(two) -> None:
    a, b = two
    mix = mixture([(a, 1), (b, 1)])
    assert len(mix) == 130 and mix.num_classes == 5 and mix.classes == list("abcde")
    assert mix.read(99) == a.read(99) and mix.read(100) == b.read(0)
    assert (mix.label(103), mix.key(103), mix.labels_of(103)) == (b.label(3), b.key(3), b.labels_of(3))
    assert mix.shard_name(103) == str(b.folder / "part-000.tar")
    for position in range(64):
        source = int(mix.sample_at(position) >= 100)
        assert all(int(mix.substitute(position, n) >= 100) == source for n in range(1, 20))


def test_a_stream_reads_a_mixture(two) -> None:
    mix = mixture([(two[0], 3), (two[1], 1)], 8)
    transform, decoding = EvalTransform(16, 1), Decoding(10**6, 16, threads=2)
    with TrainStream(mix, mix, transform, Share(8), decoding, batch_size=16) as stream:
        batches = list(islice(stream, 6))
    samples = np.concatenate([batch.sample.numpy() for batch in batches])
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    assert labels.tolist() == [mix.label(int(sample)) for sample in samples]
    assert (samples.reshape(3, 16) >= 100).sum(axis=1).tolist() == [4, 4, 4]


def test_chunks_of_a_mixture_are_those_of_its_sources(two) -> None:
    mix = mixture([(two[0], 1), (two[1], 1)], 4, chunk=4, window=2)
    assert mix.keep_chunks(ranks=1, memory=10**8)
    samples, chunks = mix.locate(np.arange(200))
    mix.prefetch(chunks)
    pairs = zip(samples.tolist(), chunks.tolist(), strict=True)
    assert all(mix.read(sample, chunk) == mix.read(sample) for sample, chunk in pairs)


def test_lanes_are_allotted_by_largest_remainder() -> None:
    assert allot(16, [3, 1]) == [12, 4]
    assert allot(10, [1, 1, 1]) == [4, 3, 3]
    assert allot(30, [0.1, 0.9]) == [3, 27]
    assert allot(8, [0.99, 0.01]) == [8, 0]
    for weights in ([0, 1], [-1, 2], [float("nan")], [float("inf")], []):
        with pytest.raises(UsageError, match="above 0"):
            allot(8, weights)


def test_a_mixture_that_cannot_work_says_why(two, tmp_path) -> None:
    a, b = two
    with pytest.raises(UsageError, match=r"/b gets none of the 4 lanes.*raise data\.lanes"):
        mixture([(a, 99), (b, 1)], lanes=4)
    with pytest.raises(UsageError, match=r"set data\.lanes to 16"):
        mixture([(a, 1), (b, 1)], lanes=32).check(16)
    shutil.copytree(b.folder, tmp_path / "c")
    (tmp_path / "c" / "classes.json").write_text('["a", "b", "x", "d", "e"]')
    with pytest.raises(
        UsageError, match=r"label 2 is 'x' there and 'c' in .*data_tools pack .*/c NEW --classes .*/a"
    ):
        mixture([(a, 1), (ShardSet.open(tmp_path / "c"), 1)])
