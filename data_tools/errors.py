"""Errors that a user can correct or that pass by themselves, and text that any console can show."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO, TypeVar

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
UNREAD = 141  # the exit code of a program whose output nobody reads any more: 128 + SIGPIPE
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


class _OutputLostError(Exception):
    """What a command is for could not be printed; its cause is an OSError."""


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


def refuse_idle_module() -> None:
    """End a `python -m` of a module that is no command, which would do nothing and seem to have succeeded.

    Called while Python imports the package of that module.
    """
    if getattr(sys, "argv", [])[:1] != ["-m"]:  # what stands there until Python has found the module
        return
    name = re.sub(r"^-\w*m", "", sys.orig_argv[-len(sys.argv)])
    file = Path(__file__).parents[1].joinpath(*name.split(".")).with_suffix(".py")
    if file.is_file() and "\nif __name__" not in file.read_text(encoding="utf-8"):
        commands = "data_tools, pretrain, pretrain.checkpoints, finetune and launch"
        print_line(f"error: {name} is no command; python -m runs {commands}", error=True)
        sys.exit(UsageError.exit_code)


def run_command(command: Callable[[], int]) -> int:
    """Run what a user calls; returns its exit code, also for an error, which is shown in one line."""
    escape_output()
    try:
        try:
            return command()
        finally:
            _raise_if_lost(sys.stdout.flush)
    except _OutputLostError as lost:
        flush_or_drop(sys.stdout)
        if isinstance(lost.__cause__, BrokenPipeError):
            return UNREAD
        return _shown(f"standard output: {lost}", UserError.exit_code)
    except UserError as error:
        return _shown(str(error), error.exit_code)
    except KeyboardInterrupt:
        print_line("interrupted: the same command again goes on where it can", error=True)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _shown(f"{where}{error.strerror or error}", UsageError.exit_code)


def _shown(text: str, code: int) -> int:
    """Print an error, whose line breaks stay; returns `code`."""
    print_line("\n".join(map(printable, f"error: {text}".split("\n"))), error=True)
    return code


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


def print_result(text: str) -> None:
    """Print on stdout what a command is for. Where that cannot be written, `run_command` ends the command:
    in silence, as SIGPIPE does, if nobody reads any more (`| head -1`), else with an error.
    """
    _raise_if_lost(lambda: print(text, flush=True))


def _raise_if_lost(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise _OutputLostError(error.strerror) from error


def print_line(text: str, *, error: bool = False) -> None:
    """Print a line that only tells of the work, on stdout or, for an error, on stderr, at once.

    Where that is closed, full or no longer read, it is lost, and the work goes on.
    """
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError, ValueError):
        print(text, file=stream)
    flush_or_drop(stream)


def flush_or_drop(stream: TextIO) -> None:
    """Write what the stream still keeps. Where that fails, that is lost, and all that comes."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
