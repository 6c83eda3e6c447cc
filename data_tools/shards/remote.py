"""Byte ranges of files behind URLs, read with fsspec, and again where an attempt fails.

http and https need the package aiohttp, s3 needs s3fs, gs needs gcsfs. Every other scheme is refused,
above all `pipe:`, which would run a command.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data_tools.errors import DataError, UsageError

SCHEMES = ("file", "http", "https", "s3", "gs")
_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds; each wait is twice the one before, times 0.5 to 1.5
_CONNECT_TIMEOUT, _READ_TIMEOUT = 20, 60  # seconds without an answer
_FINAL = frozenset({400, 401, 403, 404, 405, 410, 416})  # HTTP answers for which waiting does not help
Result = TypeVar("Result")


class _Refused(Exception):
    """The server refuses, and would do so again."""


def check_scheme(url: str) -> None:
    """UsageError unless data may be read from `url`."""
    scheme = url.partition(":")[0].lower()
    if "://" not in url or scheme not in SCHEMES:
        raise UsageError(
            f"{shown(url)!r} is refused: data is read from {', '.join(SCHEMES)} URLs and from local paths."
        )


def shown(url: str) -> str:
    """The URL without user, password and query, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host or "://" in url else url


def size(url: str) -> int:
    """The size of the file at `url` in bytes. Raises as patiently() does."""
    filesystem, path = _filesystem(url)

    def once() -> int:
        if _is_http(filesystem):
            return _http_range(filesystem, path, 0, 1)[1]
        return int(filesystem.info(path)["size"])

    return patiently(url, once)


def read(url: str, start: int, length: int) -> bytes:
    """Exactly `length` bytes from byte `start` on. Raises as patiently() does."""
    filesystem, path = _filesystem(url)

    def once() -> bytes:
        if _is_http(filesystem):
            data, _ = _http_range(filesystem, path, start, length)
        else:
            data = filesystem.cat_file(path, start=start, end=start + length)
        if len(data) != length:
            raise OSError(f"{len(data)} bytes came instead of {length}")
        return data

    return patiently(url, once) if length else b""


def expand(urls: list[str]) -> list[str]:
    """The URLs of all shards, sorted: {000..127} and * are expanded, and URL/ means its *.tar files.

    UsageError for a pattern without files, and for a shard that is named twice.
    """
    from braceexpand import braceexpand  # a dependency of webdataset

    found: list[str] = []
    for pattern in urls:
        check_scheme(pattern)
        for url in braceexpand(pattern + "*.tar" if pattern.endswith("/") else pattern):
            found += _glob(url) if "*" in url else [url]
    if len(set(found)) < len(found):
        twice = next(url for url in found if found.count(url) > 1)
        raise UsageError(f"{shown(twice)} is given twice: name every shard once.")
    return sorted(found)


def _glob(url: str) -> list[str]:
    filesystem, path = _filesystem(url)
    names = patiently(url, lambda: [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)])
    if not names:
        raise UsageError(f"{shown(url)} matches no file: check it, or name the shards with {{000..127}}.")
    return names


def patiently(url: str, ask: Callable[[], Result]) -> Result:
    """The result of ask(), which is called again, after growing pauses, while it fails.

    DataError, naming `url`, after the last attempt, or at once where waiting does not help.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return ask()
        except _Refused as error:
            raise DataError(f"{shown(url)}: {error}.") from None
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{shown(url)} cannot be read ({type(error).__name__}): check it.") from error
        except Exception as error:  # every client library has its own errors
            if (status := getattr(error, "status", None)) in _FINAL:
                raise DataError(f"{shown(url)} cannot be read: the server answers {status}.") from error
            if attempt == _ATTEMPTS:
                reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").replace(url, shown(url))
                raise DataError(
                    f"{shown(url)} could not be read in {attempt} attempts, the last one: {reason[:300]}"
                ) from error
            wait = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("the last attempt returns or raises")


def _filesystem(url: str) -> tuple[Any, str]:
    check_scheme(url)
    options: dict[str, Any] = {}
    try:
        from fsspec.core import url_to_fs

        if url.lower().startswith("http"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT)
            options["client_kwargs"] = {"timeout": timeout}
        return url_to_fs(url, **options)  # fsspec returns the same object each time, so connections stay open
    except ImportError as error:
        raise UsageError(
            f"{shown(url)} needs a package that is not installed ({error}): "
            "pip install 'vit-pretrain[remote]' for http(s), [s3] for s3, [gs] for gs in its place."
        ) from error


def _is_http(filesystem: Any) -> bool:
    return "http" in filesystem.protocol


def _http_range(filesystem: Any, url: str, start: int, length: int) -> tuple[bytes, int]:
    """A range of a file, and the size of the file.

    Not fsspec's cat_file, which downloads the whole file from a server that ignores ranges, nor its
    info(), which reports every failure as a missing file.
    """
    from fsspec.asyn import sync

    async def ask() -> tuple[bytes, int]:
        session = await filesystem.set_session()
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        async with session.get(filesystem.encode_url(url), headers=headers) as answer:
            answer.raise_for_status()
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status != 206 or not total.isdigit():
                raise _Refused(
                    "the server does not send parts of a file, so samples cannot be read from it: copy "
                    "the shards, or read them from front to back with data.sequential=true"
                )
            return await answer.read(), int(total)

    return sync(filesystem.loop, ask)
