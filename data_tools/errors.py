"""Errors that a user can correct or that pass by themselves, and text that any console can show."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

# What a disk, or the network behind it, reports and may not report again a moment later.
_TRANSIENT = frozenset(
    (
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOTCONN,
        errno.EMFILE,
        errno.ENFILE,
    )
)
_DISK_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a file is tried again
Result = TypeVar("Result")


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


def is_transient(error: OSError) -> bool:
    """Whether the same access to a file may succeed a moment later."""
    return error.errno in _TRANSIENT


def retrying(access: Callable[[], Result]) -> Result:
    """The result of access(), which is called again, after growing pauses, while its OSError is transient.

    Raises the last OSError.
    """
    for pause in _DISK_WAITS:
        try:
            return access()
        except OSError as error:
            if not is_transient(error):
                raise
            time.sleep(pause)
    return access()


class Stopped(Exception):
    """The process was asked to stop while it waited."""


def escape_output() -> None:
    """Let stdout and stderr show escaped what their encoding does not have, instead of ending the program.

    Such as a name of a file that is not UTF-8, or any other than English letters where the locale is C.
    One that is closed becomes /dev/null: else the next file that is opened would get what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, so the one of this stream
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def counted(number: int, one: str, many: str = "") -> str:
    """1 shard, 2 shards; many: the plural where it is not formed by an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not show as it is.

    Names of files may hold line breaks, codes that change colours or the direction of reading, and bytes
    that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """As printable(), but a line break stays if two blanks follow it, as in our own lists and tracebacks.

    So no line begins with what a name in somebody's data says.
    """
    return "\n  ".join(map(printable, text.split("\n  ")))


def print_line(text: str, *, error: bool = False) -> None:
    """Print a line, as printable_lines() shows it, on stdout or, for an error, on stderr, at once.

    Where that is closed, full or no longer read, it is lost, and nothing else goes there any more.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(printable_lines(text), file=stream, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # also what the stream still keeps will be dropped
            os.close(nowhere)
