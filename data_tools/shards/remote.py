"""Byte ranges of files behind URLs, read with fsspec, and again where an attempt fails.

http and https need the package aiohttp, s3 needs s3fs, gs needs gcsfs. Every other scheme is refused,
above all `pipe:`, which would run a command. http(s) goes through the proxy that HTTP_PROXY, HTTPS_PROXY and
NO_PROXY name.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from data_tools.errors import DataError, Stopped, UsageError, UserError, shown, without_secrets
from data_tools.shards.clients import FileState, Refused, WholeFile, http_range, is_http, open_client
from data_tools.shards.urls import as_sent, check_scheme

_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds; each wait is twice the one before, times 0.5 to 1.5
_BUSY = 1200.0  # seconds in all that a busy server is waited for: less than train.step_timeout
_LOOK = 0.2  # seconds between two looks at whether to stop waiting
_PROXY, _TOO_SHORT, _TOO_MANY, _UNAVAILABLE = 407, 416, 429, 503
_EXPIRED = ", and a signed URL may have expired: sign it anew, in the index too"
_HINTS = {
    **dict.fromkeys((400, 401, 403), _EXPIRED),
    _PROXY: ": the proxy wants a user and password: put USER:PASSWORD@ before its host in HTTP_PROXY",
    _TOO_SHORT: ": it is shorter than when it was indexed; run python -m data_tools index again",
}
_REDIRECTS = {  # aiohttp's errors
    "TooManyRedirects": "the server redirects it in a circle",
    "NonHttpUrlRedirectClientError": "the server redirects it to what is no http(s) URL",
    "InvalidUrlRedirectClientError": "the server redirects it to what is no URL",
}
_PASSING = (408, 425, _TOO_MANY)  # of the errors 4xx, those for which waiting helps
_LISTED_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "updated")  # in fsspec's info()
Result = TypeVar("Result")
_asked_to_stop: Callable[[], bool] = bool  # bool() is False


def stop_waiting_when(asked: Callable[[], bool]) -> None:
    """Whoever waits for a server that is busy or fails raises Stopped once asked() is true, in any thread."""
    global _asked_to_stop
    _asked_to_stop = asked


def look(url: str) -> FileState:
    """The state of the file at `url`. Raises as patiently() does."""
    filesystem, path = open_client(url)

    def once() -> FileState:
        if is_http(filesystem):
            return http_range(filesystem, path, 0, 1)[1]
        info = filesystem.info(path)
        version = next((f"{key} {info[key]}" for key in _LISTED_VERSIONS if info.get(key)), None)
        return FileState(int(info["size"]), version)

    return patiently(url, once)


def fetch(url: str, start: int, length: int) -> tuple[bytes, FileState | None]:
    """Exactly `length` bytes from byte `start` on, and the state of the file if the answer tells it.

    Raises as patiently() does.
    """
    filesystem, path = open_client(url)

    def once() -> tuple[bytes, FileState | None]:
        state = None
        if is_http(filesystem):
            data, state = http_range(filesystem, path, start, length)
        else:
            data = filesystem.cat_file(path, start=start, end=start + length)
        if len(data) != length and not (state and state.size < start + length):
            raise OSError(f"{len(data)} bytes came instead of {length}")
        return data, state

    return patiently(url, once) if length else (b"", None)


def read(url: str, start: int, length: int) -> bytes:
    """As fetch(), without the state."""
    return fetch(url, start, length)[0]


def open_whole(url: str) -> WholeFile:
    """The file at an http(s) URL, to be read from front to back. Raises as patiently() does."""
    return patiently(url, lambda: WholeFile(url))


def expand(urls: Sequence[str]) -> list[str]:
    """The URLs of all shards, sorted: {000..127} and * are expanded, and URL/ means its *.tar files.

    UsageError for a pattern without files, and for a shard that is named twice.
    """
    found: list[str] = []
    for pattern in urls:
        check_scheme(pattern)
        path, mark, query = pattern.partition("?")
        path += "*.tar" if path.endswith("/") else ""
        if "*" in path and mark:
            raise UsageError(f"{shown(path)} has a query: name its shards with {{000..127}} and without *.")
        for url in braces(path + mark + query):
            found += _glob(url) if "*" in path else [url]
    if len(set(found)) < len(found):
        twice = next(url for url in found if found.count(url) > 1)
        raise UsageError(f"{shown(twice)} is given twice: name every shard once.")
    return sorted(found)


def braces(pattern: str) -> list[str]:
    """The texts that a{0..2} or a{0,1,2} stands for. UsageError for a brace that does not close."""
    from braceexpand import braceexpand  # a dependency of webdataset

    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:
        raise UsageError(
            f"{shown(pattern)}: its braces do not close: write {{0000..0127}} or {{train,val}}."
        ) from None


def _glob(url: str) -> list[str]:
    filesystem, path = open_client(url)
    names = patiently(url, lambda: [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)])
    if not names:
        raise UsageError(f"{shown(url)} matches no file: check it, or name the shards with {{000..127}}.")
    return names


def patiently(url: str, ask: Callable[[], Result]) -> Result:
    """The result of ask(), which is called again, after growing pauses, while it fails.

    A server that is busy (429, or 503 with Retry-After) is asked again when it says, or after such pauses
    where it does not say when; that counts as no attempt. DataError, naming `url`, at once where waiting does
    not help; with exit code 1, as it may pass, after the last attempt or 20 minutes of being busy. Stopped,
    see stop_waiting_when().
    """
    attempt = busy = 0
    waited = 0.0
    while True:
        try:
            return ask()
        except Refused as error:
            raise DataError(f"{shown(url)}: {error}.") from None
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{shown(url)} cannot be read ({type(error).__name__}): check it.") from error
        except Exception as error:  # every client library has its own errors
            if type(error).__name__ in _REDIRECTS:
                raise DataError(
                    f"{shown(url)} cannot be read: {_REDIRECTS[type(error).__name__]}."
                ) from error
            status = getattr(error, "status", None)
            if status and 400 <= status < 500 and status not in _PASSING:
                hint = _HINTS.get(status, "")
                hint = "" if hint == _EXPIRED and "?" not in url else hint
                raise DataError(f"{shown(url)} cannot be read: the server answers {status}{hint}.") from error
            asked = _retry_after(error)
            if status == _TOO_MANY or (status == _UNAVAILABLE and asked is not None):
                busy += 1
                pause = max(asked or 0.0, _pause(busy))
                if waited + pause > _BUSY:
                    raise _may_pass(
                        f"{shown(url)} cannot be read: the server answers {status} (busy), and would have to "
                        f"be waited for {pause:.0f} s more, after {waited:.0f} s: start again later."
                    ) from error
                waited += pause
                _wait(pause)
                continue
            attempt += 1
            if attempt == _ATTEMPTS:
                text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
                reason = without_secrets(text.replace(as_sent(url), shown(url)).replace(url, shown(url)))
                raise _may_pass(
                    f"{shown(url)} could not be read in {attempt} attempts, the last one: {reason[:300]}"
                ) from error
            _wait(_pause(attempt))


def _may_pass(text: str) -> DataError:
    found = DataError(text)
    found.exit_code = UserError.exit_code
    return found


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if _asked_to_stop():
            raise Stopped
        time.sleep(min(left, _LOOK))


def _pause(attempt: int) -> float:
    """Seconds before the next attempt, different in each process, so that they do not all come at once."""
    return min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.5)


def _retry_after(error: Exception) -> float | None:
    """The seconds of an answer's Retry-After, which is a number or a date (RFC 9110, 10.2.3); else None."""
    from email.utils import parsedate_to_datetime  # here, because it is rarely needed

    text = str((getattr(error, "headers", None) or {}).get("Retry-After", "")).strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text, re.ASCII):  # some servers send fractions
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
