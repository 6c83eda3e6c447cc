"""Which process ended without a word, when the others lose their connections to it.

Every process that is still there makes a file in logs/lost/: one whose connection broke by `silent_ranks`,
one that waits in a collective by its watchdog. Those without a file are the lost ones.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 4.0  # seconds for all others to answer
_BROKEN = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|timed out waiting", re.I)


class FailedElsewhere(RuntimeError):
    """An error of another process, which tells it itself."""


def is_consequence(error: Exception) -> bool:
    """Whether `error` says only that another process failed or is gone."""
    from torch.distributed import DistError

    return isinstance(error, FailedElsewhere | DistError) or (
        isinstance(error, RuntimeError | ConnectionError) and bool(_BROKEN.search(str(error)))
    )


def answers(run: Path) -> Path:
    """The folder of the answers in the run folder `run`."""
    return run / "logs/lost"


def answer(run: Path, rank: int) -> None:
    """Say that process `rank` is still there."""
    with suppress(OSError):
        answers(run).mkdir(parents=True, exist_ok=True)
        (answers(run) / str(rank)).touch()


def silent_ranks(run: Path, rank: int, size: int) -> list[int]:
    """Ask all `size` processes whether they are there; returns those that do not answer in time."""
    answer(run, rank)
    limit = time.monotonic() + PATIENCE
    while True:
        silent = [other for other in range(size) if not (answers(run) / str(other)).exists()]
        if not silent or time.monotonic() > limit:
            return silent
        time.sleep(0.1)
