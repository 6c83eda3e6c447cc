"""Shards of a web server that sends no parts of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hostile_shards import READ, REFUSED
from range_server import Server, serve
from sample_files import picture, write_tar

from data_tools.augment.transforms import EvalTransform
from data_tools.batches.sequential import SequentialShards, SequentialStream
from data_tools.batches.stream import Decoding, Share
from data_tools.errors import DataError, UsageError
from data_tools.shards import remote
from data_tools.tile_batch import checksum

SHARE, DECODING = Share(8), Decoding(max_pixels=10**6, tile_size=16, threads=2)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    with serve(tmp_path) as running:
        running.ranges = False
        yield running


def stream(
    server: Server,
    names: list[str],
    classes: int = 5,
    share: Share = SHARE,
    decoding: Decoding = DECODING,
    *,
    buffer: int = 10,
    start_step: int = 0,
) -> SequentialStream:
    braces = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
    source = SequentialShards(f"{server.url}/{braces}", classes)
    return SequentialStream(
        source, EvalTransform(16, 1), share, decoding, seed=3, start_step=start_step, buffer=buffer
    )


def shards(make_shards, server: Server, sizes: list[int], **options) -> list[str]:
    folder = make_shards(sizes, **options).folder
    return [f"{folder.name}/{path.name}" for path in sorted(folder.glob("*.tar"))]


def test_a_pass_delivers_every_sample_once_with_its_label(make_shards, server) -> None:
    names = shards(make_shards, server, [20, 12])
    with stream(server, names, buffer=1) as batches:
        first = list(islice(batches, 4))
    sums = [value for batch in first for value in checksum(batch)]
    assert len(set(sums)) == 32 and all((batch.weight == 1).all() for batch in first)
    labels = np.concatenate([batch.labels.numpy() for batch in first])
    assert sorted(labels.tolist()) == sorted(n % 5 for n in range(32))
    ranks = []
    for rank in range(2):
        with stream(server, names, share=Share(4, rank, 2), buffer=1) as batches:
            ranks += [value for batch in islice(batches, 3) for value in checksum(batch)]
    assert len(set(ranks)) == 24  # no image on both ranks


def test_a_broken_connection_loses_and_doubles_nothing(make_shards, server) -> None:
    names = shards(make_shards, server, [32])
    server.fail_next, server.drop_next = 2, 2
    with stream(server, names, buffer=1) as batches:
        assert len({value for batch in islice(batches, 4) for value in checksum(batch)}) == 32
    server.drop_next = 10**6
    with stream(server, names) as batches, pytest.raises(DataError, match="broke off 4 times"):
        list(islice(batches, 4))


def test_bad_samples_are_passed_over_and_named(server, tmp_path) -> None:
    good = [[(f"{key}.jpg", picture(n)), (f"{key}.cls", b"1")] for n, key in enumerate("axyz")]
    bad = [("b.jpg", picture(2)[:300]), ("b.cls", b"2"), ("c.jpg", picture(3)), ("d.cls", b"1")]
    bad += [("e.jpg", picture(5)), ("e.cls", b"7"), ("f.jpg", picture(6)), ("f.cls", b"+1")]
    members = [*good[0], *bad, ("g.pickle", b"x"), *good[0], *good[1], *good[2], *good[3]]
    write_tar(tmp_path / "x.tar", members)
    decoding = replace(DECODING, prefetch=1)
    with stream(server, ["x.tar"], share=Share(4), decoding=decoding, buffer=1) as batches:
        batch = next(batches)
    assert batch.weight.tolist() == [1] * 4 and batch.labels.tolist() == [1] * 4
    assert [sample.key for sample in batch.bad] == ["b", "c", "d", "e", "f", "a"]
    assert "further on" in batch.bad[-1].reason


def test_every_start_draws_another_order(make_shards, server) -> None:
    names = shards(make_shards, server, [20, 12])
    sums = []
    for start_step in (0, 0, 5):
        with stream(server, names, decoding=replace(DECODING, threads=0), start_step=start_step) as batches:
            sums.append(checksum(next(batches)))
    assert sums[0] == sums[1] != sums[2]


def test_what_cannot_be_streamed_ends_in_a_sentence(server, tmp_path) -> None:
    for url in ("pipe:cat x.tar", "file:///x.tar", "x.tar", "s3://bucket/x.tar", f"{server.url}/*.tar"):
        with pytest.raises(UsageError, match=r"reads shards from http\(s\) URLs"):
            SequentialShards(url, 5)
    with pytest.raises(UsageError, match="1 shards are too few for 2 processes"):
        stream(server, ["x.tar"], share=Share(8, 0, 2))
    write_tar(tmp_path / "x.tar", [("README", b"x")])
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    write_tar(tmp_path / "none.tar", [("a.cls", b"1")])
    problems = {"x.tar": "no sample", "cut.tar": "not a tar", "away.tar": "404", "none.tar": "too many"}
    for name, reason in problems.items():
        with stream(server, [name]) as batches, pytest.raises(DataError, match=reason):
            next(batches)


@pytest.mark.parametrize("name", [*REFUSED, *READ])
def test_hostile_shards_are_refused_or_give_good_samples_only(name, hostile: Path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    file = name if "." in name else f"{name}.tar"
    decoding = replace(DECODING, max_pixels=67_108_864)
    with (
        serve(hostile / "shards") as server,
        stream(server, [file], 4, Share(1), decoding, buffer=1) as batches,
    ):
        server.ranges = False
        if name in REFUSED or name in ("all_bad", "interleaved_keys"):
            with pytest.raises(DataError):
                list(islice(batches, 200))
            return
        first = list(islice(batches, 40))
    assert all(0 <= batch.labels.item() < 4 and batch.weight.item() == 1 for batch in first)
    assert any(batch.bad for batch in first) == bool(READ[name][1] or name == "bad_images_inside")


def test_masks_beside_an_image_are_no_fault_of_its_sample(server, tmp_path) -> None:
    members = []
    for n in range(8):
        image = [(f"x{n}.jpg", picture(n)), (f"x{n}.cls", b"%d" % (n % 5))]
        mask = [(f"x{n}.input.jpg", picture(99)), (f"x{n}.seg.png", picture(98, kind="PNG"))]
        members += [*mask, *image] if n % 2 else [*image, *mask]
    write_tar(tmp_path / "a.tar", members)
    with stream(server, ["a.tar"], buffer=1) as batches:
        (batch,) = islice(batches, 1)
    assert len(set(checksum(batch))) == 8 and not batch.bad
