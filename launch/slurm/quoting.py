"""Values that get into the batch script. Each stays one word on one line, whatever it holds."""

from __future__ import annotations

import os
import re
import shlex

from data_tools.errors import UsageError

OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.ASCII)


def quote(text: str) -> str:
    """`text` as one word of bash, on one line also where it holds line breaks or bytes that are not UTF-8."""
    if text.isprintable():
        return shlex.quote(text)
    plain = set(range(32, 127)) - set(b"'\\")
    return "$'" + "".join(chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(text)) + "'"


def one_line(where: str, text: str) -> str:
    """`text` itself. Raises UsageError that names `where` if it holds a line break or control character."""
    if not text.isprintable():
        raise UsageError(f"{where}: '{text}': it holds a character that cannot be printed: leave it out")
    return text


def option(where: str, text: str) -> str:
    """An option of sbatch or srun as a site file has it, without the quotes around its value.

    Raises UsageError that names `where` unless it is --NAME or --NAME=VALUE.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed
        words = []
    if len(words) != 1 or not OPTION.fullmatch(words[0]):
        raise UsageError(
            f"{where}: '{text}': options are written --name or --name=value, each in quotes of its own"
        )
    return words[0]
