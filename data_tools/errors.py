"""What can go wrong that a user can put right, and the exit code that each kind ends in."""

from __future__ import annotations


class UserError(Exception):
    """A problem put into one clear sentence: it names the file, key or value, and what to do.

    shared: every process of the job raises it at the same point, so that one of them is enough to
    say it.
    """

    exit_code = 1

    def __init__(self, text: str, *, shared: bool = False) -> None:
        super().__init__(text)
        self.shared = shared


class UsageError(UserError):
    """Wrong command line or configuration, or a checkpoint that does not fit it."""

    exit_code = 2


class DataError(UserError):
    """Data that is missing, damaged or not what it claims to be."""

    exit_code = 3


class DivergedError(UserError):
    """The loss is no longer a finite number."""

    exit_code = 4
