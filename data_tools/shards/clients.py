"""The one place that opens URLs: the client library of each scheme, and what http(s) needs beyond fsspec."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

from data_tools.errors import UsageError, shown
from data_tools.shards.urls import as_sent, check_scheme

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII | re.IGNORECASE)
_CONNECT_TIMEOUT, _READ_TIMEOUT = 20, 60  # seconds without an answer


class Refused(Exception):
    """The server refuses, and would do so again."""


@dataclass(frozen=True)
class FileState:
    """What a file is known by. size: in bytes.

    version: changes whenever the content does, such as `ETag "3f80f"` or `mtime_ns 1792065`; None if there
    is nothing of the kind.
    """

    size: int
    version: str | None = None


def open_client(url: str) -> tuple[Any, str]:
    """fsspec's file system for `url`, the same object each time, and the name by which it knows the file.

    UsageError for a scheme that is not read, and where the package for it is not installed.
    """
    check_scheme(url)
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    try:
        import fsspec

        if scheme in ("http", "https"):
            filesystem = fsspec.filesystem("http", encoded=True, client_kwargs=_http_options())
            return filesystem, as_sent(f"{scheme}://{rest}")
        filesystem = fsspec.filesystem(scheme)
        return filesystem, filesystem._strip_protocol(f"{scheme}://{rest}")
    except ImportError as error:
        raise UsageError(
            f"{shown(url)} needs a package that is not installed ({error}): "
            "pip install 'vit-pretrain[remote]' for http(s), [s3] for s3, [gs] for gs in its place."
        ) from error


def is_http(filesystem: Any) -> bool:
    """Whether http_range() reads from this file system."""
    return "http" in filesystem.protocol


def http_range(filesystem: Any, address: str, start: int, length: int) -> tuple[bytes, FileState]:
    """A range of a file, and the state of the file. Raises Refused and the errors of aiohttp.

    Not fsspec's cat_file, which downloads the whole file from a server that ignores ranges, nor its
    info(), which reports every failure as a missing file.
    """

    async def ask() -> tuple[bytes, FileState]:
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        async with await _get(filesystem, address, headers) as answer:
            answer.raise_for_status()
            sent = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
            if answer.status != 206 or sent is None:
                if answer.headers.get("Content-Range", "").strip().endswith("/*"):
                    raise Refused(
                        "the server sends parts but not the file's size, by which a change is noticed"
                    )
                raise Refused(
                    "the server does not send parts of a file, so samples cannot be read from it: copy "
                    "the shards, or read them from front to back with data.sequential=true"
                )
            data = await answer.read()
            first, last, total = map(int, sent.groups())
            if first != start or last >= total or len(data) != last + 1 - first:
                raise OSError(
                    f"{len(data)} bytes came as bytes {first}-{last}/{total}, asked from {start} on"
                )
            return data, FileState(total, _version(answer.headers))

    return _run(filesystem, ask)


def is_direct(host: str, port: int | None) -> bool:
    """Whether NO_PROXY names this host: by its name or an end of it, also with a port, or by its network."""
    from urllib.request import getproxies

    for entry in getproxies().get("no", "").lower().replace(",", " ").split():
        with suppress(ValueError):
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        name = entry.lstrip("*").lstrip(".")
        if any(f".{known}".endswith(f".{name}") for known in (host, f"{host}:{port}")) or entry == "*":
            return True
    return False


class WholeFile:
    """A file at an http(s) URL that is read once from front to back. Opening raises the errors of aiohttp.

    length: its size in bytes, or None if the server does not tell it.
    """

    def __init__(self, url: str) -> None:
        self._filesystem, address = open_client(url)

        async def ask() -> Any:
            answer = await _get(self._filesystem, address, {})
            answer.raise_for_status()  # and closes the answer
            return answer

        self._answer = _run(self._filesystem, ask)
        self.length: int | None = self._answer.content_length

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes, the next ones. OSError where the connection breaks."""
        from aiohttp import ClientError

        try:
            return _run(self._filesystem, self._answer.content.readexactly, length)
        except (ClientError, EOFError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._filesystem.loop.call_soon_threadsafe(self._answer.close)


@cache
def _http_options() -> dict[str, Any]:
    """Of aiohttp's session: timeouts, the environment's proxies, redirects to signed URLs as they come."""
    from aiohttp import ClientRequest, ClientTimeout
    from yarl import URL

    class Request(ClientRequest):
        """Goes to a proxy as curl does: also to one without http://, and past it as is_direct() says."""

        def update_proxy(self, proxy: URL | None, *rest: Any) -> None:
            if proxy and is_direct(self.url.host or "", self.url.port):
                proxy = None
            super().update_proxy(proxy if proxy is None or proxy.host else URL(f"http://{proxy}"), *rest)

    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT)
    options = {"timeout": timeout, "trust_env": True, "requote_redirect_url": False}
    return options | {"request_class": Request}


async def _get(filesystem: Any, address: str, headers: dict[str, str]) -> Any:
    from yarl import URL

    session = await filesystem.set_session()
    # A host in letters beyond ASCII is the one thing that yarl has to encode.
    url = URL(address, encoded=address.isascii())
    return await session.get(url, headers={"Accept-Encoding": "identity", **headers})


def _run(filesystem: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    from fsspec.asyn import sync

    return sync(filesystem.loop, function, *arguments)


def _version(headers: Any) -> str | None:
    """The ETag, else the time of the last change. A weak ETag counts as a strong one: both change with it."""
    if tag := headers.get("ETag"):
        return f"ETag {tag.removeprefix('W/')}"
    return f"Last-Modified {time}" if (time := headers.get("Last-Modified")) else None
