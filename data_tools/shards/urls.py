"""URLs of data: which are read, and how they are sent."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from data_tools.errors import UsageError, parts_of, shown

SCHEMES = ("file", "http", "https", "s3", "gs")
_KEPT = "%!\"#$&'()*+,/:;<=>?@[\\]^`{|}~"  # all of ASCII that a URL may hold or that a server may have signed


def is_url(path: object) -> bool:
    """Whether `path` is a URL. True for pipe: too, so that check_scheme() can refuse it."""
    return "://" in str(path) or str(path).startswith("pipe:")


def check_scheme(url: str) -> None:
    """UsageError unless data may be read from `url`."""
    scheme = url.partition(":")[0].lower()
    if "://" not in url or scheme not in SCHEMES:
        raise UsageError(
            f"'{shown(url)}' is refused: data is read from {', '.join(SCHEMES)} URLs and from local paths."
        )
    if parts_of(url) is None:
        raise UsageError(
            f"{shown(url)} is not a valid URL: write special characters of a user or password as %XX."
        )


def as_sent(url: str) -> str:
    """The URL as it goes to the server: unchanged, but for characters that no URL may hold, such as spaces.

    What a server has signed must come back to it byte for byte.
    """
    parts = urlsplit(url)
    path, query = (quote(part, _KEPT) for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query, fragment=""))
