"""Shards behind URLs, from a real web server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from range_server import Server, serve

from data_tools import __main__ as cli
from data_tools.batches.order import Order
from data_tools.errors import DataError, UsageError
from data_tools.shards import remote
from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet

pytest.importorskip("aiohttp")


@pytest.fixture
def local(make_shards) -> ShardSet:
    return make_shards([30, 25, 9])


@pytest.fixture
def server(local: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    with serve(local.folder) as running:
        yield running


@pytest.fixture
def far(server: Server, local: ShardSet, tmp_path: Path) -> ShardSet:
    """The shards of `local`, indexed and read through the server."""
    out = tmp_path / "far"
    out.mkdir()
    (out / "classes.json").write_bytes((local.folder / "classes.json").read_bytes())
    build_index(out, [f"{server.url}/part-{n:03d}.tar" for n in range(3)])
    return ShardSet.open(out)


def test_shards_behind_urls_are_those_on_the_disk(far: ShardSet, local: ShardSet, server: Server) -> None:
    assert np.array_equal(far.table, local.table) and far.classes == local.classes
    assert [far.read(i) for i in range(64)] == [local.read(i) for i in range(64)]
    assert [far.key(i) for i in (0, 40, 63)] == [local.key(i) for i in (0, 40, 63)]
    assert far.remote and not local.remote and far.shard_name(63) == f"{server.url}/part-002.tar"
    entries = json.loads((far.folder / "shardindex.json").read_text())["shardlist"]
    wanted = json.loads((local.folder / "shardindex.json").read_text())["shardlist"]
    assert [entry["sha256"] for entry in entries] == [entry["sha256"] for entry in wanted]


def test_an_index_reads_each_shard_once(far: ShardSet, local: ShardSet, server: Server) -> None:
    for entry in json.loads((local.folder / "shardindex.json").read_text())["shardlist"]:
        parts = [(first, last) for name, first, last in server.requests if name == entry["url"]]
        assert sorted(parts) == [(0, 0), (0, entry["filesize"] - 1)]  # its size, then all of it


def test_the_commands_take_urls(server: Server, local: ShardSet, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["index", f"{server.url}/part-{{000..002}}.tar", "--out", out]) == 0
    assert capsys.readouterr().out.startswith("indexed 64 samples, 3 shards")
    assert cli.main(["verify", out, "--decode"]) == 0
    capsys.readouterr()
    assert cli.main(["verify", out, "--ranks", "4"]) == 0
    assert capsys.readouterr().out.startswith("balanced, but slow: 3 shards of 0.")
    for arguments in ([server.url], [server.url, "x", "--out", out], ["x", "y"], ["x", "--out", out]):
        assert cli.main(["index", *arguments]) == 2
    assert cli.main(["index", f"{server.url}/part-000.tar", f"{server.url}/part-000.tar", "--out", out]) == 2
    assert "given twice" in capsys.readouterr().err
    assert cli.main(["verify", server.url]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_a_source_that_stumbles_is_asked_again(far: ShardSet, local: ShardSet, server: Server) -> None:
    server.fail_next = 3
    assert far.read(5) == local.read(5)
    server.drop_next = 2
    assert far.read(40) == local.read(40)
    assert server.fail_next == server.drop_next == 0


def test_a_source_that_stays_away_ends_in_one_sentence(far: ShardSet, server: Server) -> None:
    server.fail_next = 10**6
    with pytest.raises(DataError, match=r"part-000\.tar could not be read in 6 attempts, .*503") as caught:
        far.read(0)
    assert caught.value.exit_code == 1  # it may pass, so a job is queued again
    server.fail_next = 0
    before = len(server.requests)
    (server.folder / "part-000.tar").rename(server.folder / "gone.tar")
    with pytest.raises(DataError, match=r"part-000\.tar cannot be read: the server answers 404"):
        far.read(0)
    assert len(server.requests) == before  # not asked again
    (server.folder / "part-001.tar").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"part-001\.tar"):
        far.read(31)


def test_a_server_without_ranges_is_refused_before_it_sends_a_shard(
    far: ShardSet, server: Server, tmp_path: Path
) -> None:
    server.ranges = False
    with pytest.raises(DataError, match="does not send parts of a file"):
        far.read(0)
    with pytest.raises(DataError, match="does not send parts of a file"):
        build_index(tmp_path / "never", [f"{server.url}/part-000.tar"])


@pytest.mark.parametrize(
    "url", ["pipe:cat x.tar", "pipe://x", "ftp://host/x.tar", "memory://x.tar", "ssh://h/x"]
)
def test_other_schemes_are_refused(url: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(UsageError, match="refused"):
        remote.read(url, 0, 1)
    assert cli.main(["index", url, "--out", str(tmp_path / "out")]) == 2
    assert "refused" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_file_urls_and_patterns_are_read_too(local: ShardSet, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["index", f"file://{local.folder}/", "--out", out]) == 0  # all *.tar in it
    shards = ShardSet.open(out)
    assert [shards.read(i) for i in range(64)] == [local.read(i) for i in range(64)]
    assert cli.main(["index", f"file://{local.folder}/none-*.tar", "--out", out]) == 2
    (local.folder / "part-000.tar").unlink()
    with pytest.raises(DataError, match=r"part-000\.tar cannot be read \(FileNotFoundError\)"):
        shards.read(0)


def test_secrets_in_urls_are_not_shown(server: Server) -> None:
    url = server.url.replace("//", "//user:secret@") + "/none.tar?token=secret"
    with pytest.raises(DataError) as error:
        remote.read(url, 0, 10)
    assert "none.tar" in str(error.value) and "secret" not in str(error.value)


def read_stream(shards: ShardSet, order: Order, positions: np.ndarray, threads: int) -> list[bytes]:
    samples, chunks = order.locate(positions)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(shards.read, samples.tolist(), chunks.tolist()))


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_are_read_once_in_one_piece(
    far: ShardSet, local: ShardSet, server: Server, ahead: bool
) -> None:
    order = Order(1, 64, lanes=2, chunk=8, window=2)
    assert far.keep_chunks(order.chunk, in_use=4 * order.lanes * order.window)
    server.requests.clear()
    found = []
    for start in range(0, 4 * 64, 32):  # four epochs, a window of both lanes each time
        positions = np.arange(start, start + 32)
        found += read_stream(far, order, positions, threads=4)
        if ahead:
            far.prefetch(order.locate(positions + order.window_size)[1])
    wanted = order.sample_at(np.arange(4 * 64)).tolist()
    assert found == [local.read(sample) for sample in wanted]
    # 8 chunks an epoch; some lie in two shards. What was kept from earlier epochs is not read again.
    assert len(server.requests) <= 4 * 8 + 8
    assert sum(last - first + 1 for _, first, last in server.requests) < 3 * 64 * far.mean_bytes


def test_chunks_that_do_not_fit_into_memory_are_not_kept(
    far: ShardSet, local: ShardSet, server: Server
) -> None:
    assert not far.keep_chunks(8, in_use=8, memory=1000)
    server.requests.clear()
    assert far.read(7, chunk=0) == local.read(7) and len(server.requests) == 1
    assert not local.keep_chunks(1, in_use=8)
