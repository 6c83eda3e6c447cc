"""Servers as they are: busy, signed, behind a proxy, with passwords, and with files that change."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from aiohttp import web
from strict_server import Strict, proxy, running, strict_server

from data_tools import __main__ as cli
from data_tools.augment.transforms import EvalTransform
from data_tools.batches.sequential import SequentialShards, SequentialStream
from data_tools.batches.stream import Decoding, Share
from data_tools.errors import DataError, Stopped, UsageError, shown, without_secrets
from data_tools.packing.pack import pack
from data_tools.shards import remote
from data_tools.shards.clients import is_direct
from data_tools.shards.index import build_index
from data_tools.shards.remote import expand
from data_tools.shards.shard_set import ShardSet

SECRETS = ("s3cret", "t0ken", "Signature", "us3r")
USER = "us3r:s3cret%40x"  # the password is s3cret@x


@pytest.fixture
def local(make_shards) -> ShardSet:
    return make_shards([6, 5])


@pytest.fixture
def server(local: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Strict]:
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with strict_server(local.folder) as running:
        yield running


def index(out: Path, *urls: str) -> ShardSet:
    build_index(out, expand(list(urls)))
    return ShardSet.open(out)


def images(shards: ShardSet) -> list[bytes]:
    return [shards.read(i) for i in range(len(shards))]


def sequential(pattern: str) -> SequentialStream:
    return SequentialStream(
        SequentialShards(pattern, 5), EvalTransform(16, 1), Share(4), Decoding(10**6, 16, 1), seed=0, buffer=1
    )


class Clock:
    """Stands for the time that a process sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.mark.parametrize("after", ["10", "date", ""])
def test_a_server_may_be_busy_for_minutes(
    server: Strict, local: ShardSet, tmp_path, monkeypatch, after
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-{{000..001}}.tar")
    clock = Clock()
    monkeypatch.setattr(remote, "_wait", clock.sleep)
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.5)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=11), usegmt=True)
    server.busy = [(429, soon if after == "date" else after)] * 12
    assert far.read(3) == local.read(3)
    assert len(clock.slept) == 12 and sum(clock.slept) > 100
    if after:
        assert min(clock.slept) > 8
    server.busy = [(503, "30")] * 8
    with sequential(f"{server.url}/part-000.tar") as stream:
        next(stream)
    assert not server.busy


def test_a_pause_that_the_server_asks_for_is_made(server: Strict, local: ShardSet, tmp_path: Path) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-000.tar")
    server.busy = [(429, "1")]
    start = time.monotonic()
    assert far.read(3) == local.read(3) and time.monotonic() - start >= 1


def test_a_wait_ends_when_the_process_is_asked_to_stop(
    server: Strict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-000.tar")
    server.busy = [(429, "600")] * 9
    asked = threading.Event()
    monkeypatch.setattr(remote, "_asked_to_stop", asked.is_set)
    threading.Timer(0.3, asked.set).start()
    with pytest.raises(Stopped):
        far.read(3)
    assert len(server.busy) == 8


@pytest.mark.parametrize("after", ["9" * 5000, "soon", "-5", "Mon, 01 Jan 99999 00:00:00 GMT", "1.5"])
def test_an_odd_pause_is_none_or_a_short_one(
    server: Strict, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-000.tar")
    clock = Clock()
    monkeypatch.setattr(remote, "_wait", clock.sleep)
    server.busy = [(429, after), (503, after)]
    assert far.read(3) == local.read(3)
    assert len(clock.slept) == 2 and (min(clock.slept) == 1.5 if after == "1.5" else max(clock.slept) < 1)


@pytest.mark.parametrize(
    ("first", "last", "total", "size"),
    [
        (0, 49, 9000, 50),
        (100, 120, 9000, 21),
        (100, 149, 120, 50),
        (100, 149, 9000, 70),
        (0, 8999, 9000, 9000),
    ],
)
def test_a_part_that_is_not_what_was_asked_for_is_never_taken(
    monkeypatch: pytest.MonkeyPatch, first: int, last: int, total: int, size: int
) -> None:
    async def lie(request: web.BaseRequest) -> web.Response:
        headers = {"Content-Range": f"bytes {first}-{last}/{total}"}
        return web.Response(status=206, body=bytes(size), headers=headers)

    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.001)
    with running(lie) as url, pytest.raises(DataError, match=f"{size} bytes came"):
        remote.fetch(f"{url}/x.tar", 100, 50)


def test_a_server_that_withholds_the_size_is_told_as_that() -> None:
    async def part(request: web.BaseRequest) -> web.Response:
        return web.Response(status=206, body=bytes(50), headers={"Content-Range": "bytes 100-149/*"})

    with running(part) as url, pytest.raises(DataError, match="sends parts but not the file's size"):
        remote.fetch(f"{url}/x.tar", 100, 50)


@pytest.mark.parametrize("status", [402, 406, 407, 451])
def test_what_waiting_does_not_help_is_asked_once(server: Strict, monkeypatch, status: int) -> None:
    monkeypatch.setattr(remote, "_wait", lambda _: pytest.fail("it waits"))
    server.busy = [(status, "")]
    with pytest.raises(DataError, match=f"answers {status}"):
        remote.read(f"{server.url}/part-000.tar", 0, 9)


def test_a_server_that_is_busy_for_too_long_ends_in_one_sentence(
    server: Strict, local: ShardSet, tmp_path: Path
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-000.tar")
    server.busy = [(429, "86400")]
    with pytest.raises(DataError, match=r"part-000\.tar cannot be read: .* 429 .* 86400 s more") as caught:
        far.read(0)
    assert caught.value.exit_code == 1  # a job is queued again


@pytest.mark.parametrize(
    ("target", "says"),
    [("/x.tar", "in a circle"), ("file:///etc/passwd", "no http"), ("http://", "no URL")],
)
def test_a_redirect_that_leads_nowhere_is_followed_once(monkeypatch, target: str, says: str) -> None:
    async def away(request: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    monkeypatch.setattr(remote, "_wait", lambda _: pytest.fail("it waits"))
    with running(away) as url, pytest.raises(DataError, match=f"redirects it .*{says}") as caught:
        remote.fetch(f"{url}/x.tar", 0, 9)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("path", ["/part-000.tar", "/odd%2Fname+%20(1),~!'%41.tar"])
@pytest.mark.parametrize("redirect", [False, True])
def test_a_signed_url_comes_to_the_server_byte_for_byte(
    server: Strict, local: ShardSet, tmp_path: Path, path: str, redirect: bool
) -> None:
    if path != "/part-000.tar":
        name = "odd/name+ (1),~!'A.tar"
        (local.folder / "odd").mkdir()
        (local.folder / name).write_bytes((local.folder / "part-000.tar").read_bytes())
    server.signed, server.redirect = not redirect, redirect
    far = index(tmp_path / "far", server.url + path if redirect else server.sign(path, "response=a%3Bb"))
    assert images(far) == images(local)[:6]
    with sequential(server.url + path if redirect else server.sign(path)) as stream:
        assert len(next(stream).weight) == 4


def test_characters_that_no_url_may_hold_are_encoded(server: Strict, local: ShardSet, tmp_path: Path) -> None:
    (local.folder / "naïve x.tar").write_bytes((local.folder / "part-000.tar").read_bytes())
    assert images(index(tmp_path / "far", f"{server.url}/naïve x.tar")) == images(local)[:6]


def test_a_url_signed_anew_is_the_same_set(server: Strict, tmp_path: Path) -> None:
    server.signed = True
    first = index(tmp_path / "far", server.sign("/part-000.tar"), server.sign("/part-001.tar"))
    again = index(tmp_path / "again", *(server.sign(f"/part-00{n}.tar", "again=1") for n in (0, 1)))
    server.signed, server.user = False, "us3r:s3cret@x"
    address = server.url.replace("//", f"//{USER}@")
    other_user = index(tmp_path / "user", f"{address}/part-{{000..001}}.tar")
    assert first.index_sha256 == again.index_sha256 == other_user.index_sha256
    assert first.file_sha256 != again.file_sha256
    assert [first.shard_name(i) for i in (0, 6)] == [f"{server.url}/part-00{n}.tar" for n in (0, 1)]
    assert index(tmp_path / "half", f"{address}/part-000.tar").index_sha256 != first.index_sha256


def test_http_goes_through_the_proxy_that_the_environment_names(
    server: Strict, local: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(server.url) as (url, asked):
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("http_proxy", url)
        far = index(tmp_path / "far", "http://shards.invalid/part-000.tar")
        assert images(far) == images(local)[:6] and asked
        with sequential("http://shards.invalid/part-000.tar") as stream:
            next(stream)
        before = len(asked)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "localhost,127.0.0.1")
        assert images(index(tmp_path / "direct", f"{server.url}/part-000.tar")) == images(local)[:6]
        assert len(asked) == before
        monkeypatch.setenv("HTTP_PROXY", url.removeprefix("http://"))
        monkeypatch.setenv("http_proxy", url.removeprefix("http://"))
        port = int(server.url.rpartition(":")[2])
        for direct in (f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}", "127.0.0.0/8", "10.0.0.0/8"):
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.setenv(name, direct)
            asked.clear()
            assert remote.read(f"{server.url}/part-000.tar", 0, 9)
            assert bool(asked) == (direct in (f"127.0.0.1:{port + 1}", "10.0.0.0/8")), direct


@pytest.mark.parametrize(
    ("entry", "hosts"),
    [
        ("example.com", {"example.com", "a.example.com"}),
        (".example.com", {"example.com", "a.example.com"}),
        ("*.Example.com", {"example.com", "a.example.com"}),
        ("x, 10.1.0.0/16", {"10.1.2.3"}),
        ("::1 other", {"::1"}),
        ("*", {"example.com", "a.example.com", "badexample.com", "10.1.2.3", "::1"}),
        ("example.com:8080", {"example.com", "a.example.com"}),
        ("example.com:80,,", set()),
    ],
)
def test_no_proxy_names_hosts_domains_ports_and_networks(
    monkeypatch: pytest.MonkeyPatch, entry: str, hosts: set[str]
) -> None:
    monkeypatch.setenv("no_proxy", entry)
    known = ("example.com", "a.example.com", "badexample.com", "10.1.2.3", "::1")
    assert {host for host in known if is_direct(host, 8080)} == hosts


def test_a_user_and_password_are_sent_and_never_shown(
    server: Strict, local: ShardSet, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.user = "us3r:s3cret@x"
    address = server.url.replace("//", f"//{USER}@")
    wrong = server.url.replace("//", "//us3r:s3cret-wrong@")
    nobody = "http://us3r:s3cret@127.0.0.1:1"
    out = str(tmp_path / "far")
    query = "?sig=t0ken&Signature=t0ken%2F"
    assert cli.main(["index", f"{address}/part-{{000..001}}.tar{query}", "--out", out]) == 0
    assert cli.main(["verify", out, "--decode"]) == 0
    assert cli.main(["preview", out, str(tmp_path / "x.png")]) == 0
    (local.folder / "cut.tar").write_bytes((local.folder / "part-000.tar").read_bytes()[:5000])
    for url, code in (
        (f"{wrong}/part-000.tar{query}", 3),
        (f"{address}/none.tar{query}", 3),
        (f"{address}/cut.tar{query}", 3),
        (f"{nobody}/part-000.tar{query}", 3),
        ("http://us3r:s3cret/x@127.0.0.1/part-000.tar", 2),
        ("http://us3r:s3cret?x@127.0.0.1/part-000.tar", 2),
        (f"{address}/part-{{000..001.tar{query}", 2),
        (f"{address}/part-*.tar{query}", 2),
        (f"ftp://us3r:s3cret@127.0.0.1/part-000.tar{query}", 2),
    ):
        assert cli.main(["index", url, "--out", str(tmp_path / "never")]) == code, url
    assert cli.main(["verify", f"{address}/part-000.tar{query}"]) == 2
    (local.folder / "part-001.tar").write_bytes(b"x" * 5000)
    assert cli.main(["verify", out]) == 3
    for pattern in (
        f"{wrong}/part-000.tar{query}",
        f"{nobody}/part-000.tar{query}",
        f"{address}/cut.tar{query}",
    ):
        with sequential(pattern) as stream, pytest.raises(DataError) as failure:
            list(islice(stream, 9))
        print(failure.value)
    said = "".join(capfd.readouterr())
    assert "part-000.tar" in said and not [secret for secret in SECRETS if secret in said]


def test_urls_in_texts_lose_what_is_secret() -> None:
    assert shown("https://us3r:s3cret@host:8080/a/b.tar?sig=t0ken#x") == "https://host:8080/a/b.tar"
    for url in (
        "https://us3r:s3/cret@host/x.tar",
        "https://us3r:s3#cret@host/x.tar",
        "https://us3r:1/s3@host/x.tar",
    ):
        assert shown(url) == "https://.../x.tar"
    assert (
        without_secrets("no answer from http://us3r:s3'cret\"x@host/y.tar")
        == "no answer from http://host/y.tar"
    )
    text = "no answer (url='https://us3r:s3cret@host/x.tar?sig=t0ken'), then http://host/y?t0ken again"
    assert without_secrets(text) == "no answer (url='https://host/x.tar'), then http://host/y again"
    assert without_secrets({"data": {"train": ["s3://b/x.tar?t0ken"], "workers": 4}}) == {
        "data": {"train": ["s3://b/x.tar"], "workers": 4}
    }


def test_a_shard_that_was_replaced_is_refused_at_its_first_read(
    server: Strict, local: ShardSet, tmp_path: Path
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-{{000..001}}.tar")
    data = bytearray((local.folder / "part-001.tar").read_bytes())
    data[600] ^= 1
    (local.folder / "part-001.tar").write_bytes(data)
    opened = ShardSet.open(tmp_path / "far")
    assert opened.read(0) == local.read(0)
    with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed.*data_tools index"):
        opened.read(7)
    with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed"):
        far.read(7)  # in the middle of a run too
    (local.folder / "part-001.tar").write_bytes(bytes(data) + bytes(10_240))
    with pytest.raises(DataError, match=r"part-001\.tar: \d+ bytes, but \d+ when it was indexed"):
        ShardSet.open(tmp_path / "far").read(7)


def test_another_etag_of_the_same_content_is_no_other_shard(
    server: Strict, local: ShardSet, tmp_path: Path
) -> None:
    index(tmp_path / "far", f"{server.url}/part-{{000..001}}.tar")
    server.tags["part-001.tar"] = "of another machine"
    far = ShardSet.open(tmp_path / "far")
    server.addresses.clear()
    assert images(far) == images(local)
    assert len(server.addresses) == len(local) + 1  # one shard was read once as a whole
    for tag in ("of another machine", "of a third", "of another machine", "of a third"):
        server.tags["part-001.tar"] = tag
        server.addresses.clear()
        assert far.read(7) == local.read(7)
    assert len(server.addresses) == 1  # servers behind one name are each compared once


def test_an_index_of_version_0_1_is_compared_by_size(server: Strict, local: ShardSet, tmp_path: Path) -> None:
    index(tmp_path / "far", f"{server.url}/part-{{000..001}}.tar")
    file = tmp_path / "far" / "shardindex.json"
    content = json.loads(file.read_text())
    for entry in content["shardlist"]:
        del entry["version"]
    file.write_text(json.dumps(content, indent=1) + "\n")
    assert images(ShardSet.open(file)) == images(local)
    (local.folder / "part-000.tar").write_bytes((local.folder / "part-001.tar").read_bytes())
    with pytest.raises(DataError, match=r"part-000\.tar: \d+ bytes, but"):
        ShardSet.open(file).read(0)


def test_urls_that_differ_in_their_query_alone_are_told_apart(
    server: Strict, local: ShardSet, tmp_path: Path
) -> None:
    far = index(tmp_path / "far", f"{server.url}/part-000.tar?id=1", f"{server.url}/part-000.tar?id=2")
    assert [far.shard_name(i) for i in (0, 6)] == [f"{server.url}/part-000.tar#{n}" for n in (0, 1)]
    (packed,) = pack(tmp_path / "far", tmp_path / "packed")
    assert packed.images == 12
    paths = b"".join(path.read_bytes() for path in (tmp_path / "packed").glob("*.tar"))
    assert b"part-000.tar#1/" in paths and b"?id=" not in paths


def test_a_pattern_of_urls_that_cannot_be_listed_says_so(server: Strict) -> None:
    with pytest.raises(UsageError, match=r"name its shards with \{000\.\.127\}"):
        expand([f"{server.url}/*.tar?t0ken"])
