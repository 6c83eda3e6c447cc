"""Errors that a user can correct, the exit code of each of them, and text that any console can show."""

from __future__ import annotations

import io
import sys


class UserError(Exception):
    """A problem in one clear sentence, which names the file, key or value and says what to do.

    shared: every process of the job raises it at the same point, so it is enough if one of them
    prints it.
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


def escape_output() -> None:
    """Let stdout and stderr show escaped what their encoding does not have, instead of ending the program.

    Such as a name of a file that is not UTF-8, or any other than English letters where the locale is C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not show as it is.

    Names of files may hold line breaks, codes that change colours or the direction of reading, and bytes
    that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
