"""The progress bar that a person at a terminal sees; logs and pipes get plain lines only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]


@contextmanager
def progress_bar(step: int, steps: int, rank: int) -> Iterator[Advance]:
    """Yields what is to be called with the number of steps done. A bar only on rank 0's terminal."""
    if rank or not sys.stdout.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed meanwhile appears above the bar.
    with Progress(*columns, console=Console(), transient=True) as progress:
        task = progress.add_task("training", total=steps, completed=step)
        yield lambda done: progress.update(task, completed=done)
