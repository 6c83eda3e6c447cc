"""Run a module in a process whose disk fails.

    python tests/drills/faulty.py SPEC.json -m MODULE ...

Accesses to files below the folder `below` of SPEC.json are open (to read), create (to write), read, write,
sync, rename, remove, mkdir and list. The accesses of the kind `access` to the file `name` fail `times` times
with the error `code`, from the one with the number `nth` on (1). `record`: a file that gets each access once
it has happened `nth` times, with the name under which it is known.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_tools.errors
import pretrain.run.files

SPEC = json.loads(Path(sys.argv[1]).read_bytes())
BELOW = SPEC["below"].rstrip("/") + "/"
EVENTS = {"os.remove": "remove", "os.mkdir": "mkdir", "os.listdir": "list", "os.scandir": "list"}
WRITING = os.O_WRONLY | os.O_RDWR
CHANGING = (  # parts of names that differ from run to run
    (re.compile(r"^(\w+)-\d+(?=/|$)"), r"\1"),  # the run
    (re.compile(r"\.[^./]+\.\d+$"), ".HOST.PID"),
    (re.compile(r"\btmp\w{8}$"), "TEMPORARY"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "UNIQUE"),
)

seen: Counter[tuple[str, str]] = Counter()
write_really = os.write
NTH = SPEC.get("nth", 1)
record = os.open(SPEC["record"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if SPEC.get("record") else None


def touch(access: str, path: Any) -> None:
    """Count an access, and raise OSError where it is to fail."""
    name = known_as(path)
    if name is None:
        return
    seen[access, name] += 1
    if record is not None and seen[access, name] == NTH:
        write_really(record, f"{access} {name}\n".encode())
    due = (SPEC.get("access"), SPEC.get("name")) == (access, name)
    if due and NTH <= seen[access, name] < NTH + SPEC["times"]:
        names = [] if isinstance(path, int) else [os.fspath(path)]  # as the system's own errors have
        raise OSError(SPEC["code"], os.strerror(SPEC["code"]), *names)


def known_as(path: Any) -> str | None:
    """The name of a file below BELOW, the same in every run; None for others."""
    if isinstance(path, int):
        try:
            path = os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return None
    whole = os.path.abspath(os.fsdecode(path))
    if not whole.startswith(BELOW):
        return None
    name = whole.removeprefix(BELOW)
    for pattern, instead in CHANGING:
        name = pattern.sub(instead, name)
    return name


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event == "open" and not isinstance(arguments[0], int):
        touch("create" if (arguments[2] or 0) & WRITING else "open", arguments[0])
    elif event == "os.rename":
        touch("rename", arguments[1])
    elif event in EVENTS and arguments[0] is not None:
        touch(EVENTS[event], arguments[0])


def failing(access: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `os` whose first argument is a file descriptor."""

    def call(descriptor: int, *arguments: Any) -> Any:
        touch(access, descriptor)
        return function(descriptor, *arguments)

    return call


class Raw(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        touch("read", self.fileno())
        return super().readinto(buffer)

    def readall(self) -> bytes:
        touch("read", self.fileno())
        return super().readall()

    def read(self, size: int | None = -1) -> bytes | None:
        touch("read", self.fileno())
        return super().read(-1 if size is None else size)

    def write(self, data: Any) -> int | None:
        touch("write", self.fileno())
        return super().write(data)


open_really = open


def open_failing(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """As open(), for files that are known."""
    if known_as(file) is None:
        return open_really(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
    buffer = kind(raw, io.DEFAULT_BUFFER_SIZE if buffering in (-1, 1) else buffering)
    if "b" in mode:
        return buffer
    text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode  # type: ignore[misc]
    return text


def main() -> None:
    data_tools.errors._DISK_WAITS = (0.0,) * len(data_tools.errors._DISK_WAITS)  # type: ignore[assignment]
    pretrain.run.files.RETRIES = (0.0, 0.0)
    for name, access in (("read", "read"), ("pread", "read"), ("write", "write"), ("fsync", "sync")):
        setattr(os, name, failing(access, getattr(os, name)))
    io.open = open_failing  # type: ignore[assignment]
    builtins.open = open_failing
    sys.addaudithook(watch)
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
