"""URLs of data: which are read, how they are sent, and how they are shown without what is secret in them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from data_tools.errors import UsageError, printable

SCHEMES = ("file", "http", "https", "s3", "gs")
_KEPT = "%!\"#$&'()*+,/:;<=>?@[\\]^`{|}~"  # all of ASCII that a URL may hold or that a server may have signed
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/@]*@)?[^\s\"'<>]+")


def is_url(path: object) -> bool:
    """Whether `path` is a URL. True for pipe: too, so that check_scheme() can refuse it."""
    return "://" in str(path) or str(path).startswith("pipe:")


def check_scheme(url: str) -> None:
    """UsageError unless data may be read from `url`."""
    scheme = url.partition(":")[0].lower()
    if "://" not in url or scheme not in SCHEMES:
        raise UsageError(
            f"{shown(url)!r} is refused: data is read from {', '.join(SCHEMES)} URLs and from local paths."
        )
    if _parts(url) is None:
        raise UsageError(
            f"{shown(url)} is not a valid URL: write special characters of a user or password as %XX."
        )


def shown(url: str) -> str:
    """The URL for messages and files: without user, password, query and fragment, which may be secret."""
    if "://" not in url:
        return printable(url)
    parts = _parts(url)
    unsure = parts is None or (":" in parts.netloc and "@" not in parts.netloc and "@" in url)
    if unsure:  # a password may hold / ? or #: only what comes after it is shown
        name = url.rpartition("@")[2].partition("?")[0].rpartition("/")[2]
        return f"{url.partition(':')[0]}://.../{printable(name)}"
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}")


def without_secrets(value: Any) -> Any:
    """A text, or lists and dictionaries of texts, in which every URL is as shown() shows it."""
    if isinstance(value, str):
        return _URL_IN_TEXT.sub(lambda found: shown(found[0]), value)
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


def as_sent(url: str) -> str:
    """The URL as it goes to the server: unchanged, but for characters that no URL may hold, such as spaces.

    What a server has signed must come back to it byte for byte.
    """
    parts = urlsplit(url)
    path, query = (quote(part, _KEPT) for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query, fragment=""))


def _parts(url: str) -> Any:
    """The parts of a URL, or None if it is not valid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return None
    return None if any(character in parts.netloc for character in " \\") else parts
