"""File descriptors of a process: how many it may have, and how many of them shards may take."""

from __future__ import annotations

import resource
from contextlib import suppress

_ENOUGH = 1 << 16  # some programs walk through all numbers up to the limit when they start
_MOST_SHARDS = 1024


def raise_limit() -> None:
    """Allow this process as many open files as it may allow itself: the soft limit becomes the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems forbid it; then the soft limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def shards_at_once() -> int:
    """How many local shards may be open together: half of what the process may open, at most 1024."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_SHARDS if soft == resource.RLIM_INFINITY else max(1, min(soft // 2, _MOST_SHARDS))
