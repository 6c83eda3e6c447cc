"""Errors that a user can correct or that pass by themselves, and text that any console can show."""

from __future__ import annotations

import argparse
import errno
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar
from urllib.parse import urlsplit

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
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,9}://(?:[^\s/@]*@)?[^\s\"'<>]*[^\s\"'<>:;,.)]")
UNREAD = 141  # the exit code of a program whose output nobody reads any more: 128 + SIGPIPE
Result = TypeVar("Result")
ErrorT = TypeVar("ErrorT", bound="UserError")


class UserError(Exception):
    """A problem in one clear sentence, which names the file, key or value and says what to do.

    shared: every process of the job raises it at the same point, so it is enough if one of them
    prints it.
    """

    exit_code = 1

    def __init__(self, text: str, *, shared: bool = False) -> None:
        super().__init__(printable_lines(text))
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


def cannot_read(kind: type[ErrorT], text: str, error: OSError) -> ErrorT:
    """The error of class `kind`, whose exit code is 1 where the same command may succeed later."""
    found = kind(text)
    if is_transient(error):
        found.exit_code = UserError.exit_code
    return found


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
    sys.excepthook = lambda kind, error, trace: print_line(traceback_of(error), error=True)
    if logging.lastResort:  # shows what a logger without handlers says
        logging.lastResort.setFormatter(LineFormatter())


def counted(number: int, one: str, many: str = "") -> str:
    """1 shard, 2 shards; many: the plural where it is not formed by an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def shown(url: str) -> str:
    """The URL for messages and files: without user, password, query and fragment, which may be secret."""
    if "://" not in url:
        return url
    parts = parts_of(url)
    unsure = parts is None or (":" in parts.netloc and "@" not in parts.netloc and "@" in url)
    if unsure:  # a password may hold / ? or #: only what comes after it is shown
        name = url.rpartition("@")[2].partition("?")[0].rpartition("/")[2]
        return f"{url.partition(':')[0]}://.../{name}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def parts_of(url: str) -> Any:
    """The parts of a URL as urlsplit() names them, or None if it is not valid."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return None
    return None if any(character in parts.netloc for character in " \\") else parts


def without_secrets(value: Any) -> Any:
    """A text, or lists and dictionaries of texts, in which every URL is as shown() shows it."""
    if isinstance(value, str):
        return _URL_IN_TEXT.sub(lambda found: shown(found[0]), value)
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not show as it is, without_secrets().

    Names of files may hold line breaks, codes that change colours or the direction of reading, and bytes
    that are not UTF-8. What was escaped once stays as it is.
    """
    text = without_secrets(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """As printable(), but a line break stays if two blanks follow it, as in our own lists and tracebacks.

    So no line begins with what a name in somebody's data says.
    """
    return "\n  ".join(map(printable, text.split("\n  ")))


class LineFormatter(logging.Formatter):
    """A Formatter of log lines as printable_lines() shows them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable_lines(super().format(record))


def traceback_of(error: BaseException) -> str:
    """The traceback as printable_lines() shows it."""
    return printable_lines("\n  ".join("".join(traceback.format_exception(error)).splitlines()))


def print_line(text: str, *, error: bool = False) -> None:
    """Print a line, as printable_lines() shows it, on stdout or, for an error, on stderr, at once.

    Where that is closed, full or no longer read, it is lost, and nothing else goes there any more.
    """
    stream = sys.stderr if error else sys.stdout
    with flushed(stream):
        stream.write(f"{printable_lines(text)}\n")


def print_result(text: str) -> None:
    """As print_line(), what a command is for; `run_command` ends the command where it cannot be printed."""
    with flushed(sys.stdout, needed=True):
        sys.stdout.write(f"{printable_lines(text)}\n")


def print_json(value: object) -> None:
    """Print a result as one line of JSON."""
    with flushed(sys.stdout, needed=True):  # json leaves no other control character
        sys.stdout.write(json.dumps(value).replace("\x7f", "\\u007f") + "\n")


@contextmanager
def flushed(stream: TextIO, *, needed: bool = False) -> Iterator[None]:
    """Write all that a block, and what came before it, prints on `stream`.

    Where that fails it goes nowhere, as does all that comes; needed: and the command ends.
    """
    try:
        yield
        stream.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # also what the stream still keeps will be dropped
            os.close(nowhere)
        if needed:
            raise _LostResultError(getattr(error, "strerror", None) or error) from error


class _LostResultError(Exception):
    """A result could not be printed; the cause says why."""


def run_command(command: Callable[[], int]) -> int:
    """Run what a user calls; returns its exit code, also for an error, which is shown in one line.

    A command whose result nobody reads any more, as in `| head -1`, ends in silence, as SIGPIPE ends others.
    """
    escape_output()
    try:
        try:
            return command()
        finally:
            with flushed(sys.stdout, needed=True):
                pass
    except _LostResultError as lost:
        if isinstance(lost.__cause__, BrokenPipeError):
            return UNREAD
        print_line(f"error: standard output: {lost}", error=True)
        return UserError.exit_code
    except UserError as error:
        print_line(f"error: {error}", error=True)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_line(f"error: {where}{error.strerror or error}", error=True)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print_line("interrupted: the same command again goes on where it can", error=True)
        return 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows arguments, which may be names of files, as print_line() does."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with code 2."""
        super().error(printable_lines(message))


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
