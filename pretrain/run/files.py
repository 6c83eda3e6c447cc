"""Reading and writing the files of a run, all but its checkpoints. Its readers take any bytes."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

RETRIES = (0.1, 0.3)  # seconds before a secondary file is tried again

log = logging.getLogger("pretrain")


class Secondary:
    """Writes files without which a run can go on, such as its metrics.

    A write that fails is tried again at once. Then one warning names the file, and the run goes on; rows are
    kept and written together with the next ones.
    """

    def __init__(self) -> None:
        self._failing: set[Path] = set()
        self._waiting: dict[Path, list[dict[str, Any]]] = {}

    def write(self, file: Path, write: Callable[[], Any]) -> bool:
        """Call `write`, which writes `file`; returns whether it did."""
        for pause in (*(RETRIES if file not in self._failing else ()), None):
            try:
                write()
            except (OSError, ValueError, TypeError, LookupError) as error:  # also of odd rows that are shown
                if pause is not None:
                    time.sleep(pause)
                elif file not in self._failing:
                    self._failing.add(file)
                    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                    log.warning("%s could not be written: %s; the run goes on", file, text)
            else:
                if file in self._failing:
                    self._failing.discard(file)
                    log.info("%s can be written again", file)
                return True
        return False

    def append(self, file: Path, rows: list[dict[str, Any]]) -> None:
        """Append rows to a JSON-lines file."""
        waiting = self._waiting.setdefault(file, [])
        waiting += rows
        if waiting and self.write(file, lambda: append_rows(file, waiting)):
            waiting.clear()

    def rows(self, file: Path, *keys: str) -> list[dict[str, Any]]:
        """As `read_rows`, and those that are not written yet."""
        return read_rows(file, *keys) + self._waiting.get(file, [])

    def flush(self) -> None:
        """Try once more to write the rows that are still kept."""
        for file in list(self._waiting):
            self.append(file, [])


def read_rows(file: Path, *keys: str) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file that are objects with these keys; none if it cannot be read.

    A step is a whole number.
    """
    return _sorted_out(file, keys)[0]


def keep_rows(file: Path, keep: Callable[[dict[str, Any]], bool], *keys: str) -> None:
    """Delete the rows of a JSON-lines file for which keep(row) is false.

    Lines that are no objects with these keys, as a crash may leave them, go to FILE.damaged, and a warning
    says so. Raises OSError.
    """
    rows, damaged = _sorted_out(file, keys)
    kept = [row for row in rows if keep(row)]
    if damaged:
        aside = file.with_name(f"{file.name}.damaged")
        with aside.open("ab") as stream:
            stream.writelines(line + b"\n" for line in damaged)
        lines = "1 line that is" if len(damaged) == 1 else f"{len(damaged)} lines that are"
        log.warning("%s: %s no row of it: moved to %s", file, lines, aside.name)
    if damaged or len(kept) < len(rows):
        replace_file(file, "".join(json.dumps(row) + "\n" for row in kept))


def _sorted_out(file: Path, keys: Iterable[str]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """(the rows of a JSON-lines file, the lines that are none)."""
    rows, damaged = [], []
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return [], []
    for line in filter(None, lines):
        row = _object(line)
        if row is not None and all(key in row for key in keys) and type(row.get("step", 0)) is int:
            rows.append(row)
        else:
            damaged.append(line)
    return rows, damaged


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty if it is missing or holds anything else."""
    try:
        return _object(file.read_bytes()) or {}
    except OSError:
        return {}


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def append_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file, all or none; its folder is made if need be. Raises OSError."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as stream:
        end = stream.tell()
        if end and not _ends_a_line(file):  # a crash cut the last row short
            data = b"\n" + data
        try:
            while data:
                data = data[stream.write(data) :]
        except OSError:
            with suppress(OSError):
                stream.truncate(end)
            raise


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def write_json(file: Path, content: Any) -> None:
    """Write `content` as JSON, as `replace_file` does."""
    replace_file(file, json.dumps(content, indent=1) + "\n")


def replace_file(file: Path, text: str) -> None:
    """Write `file` so that a reader sees the old content or the new, never a part. Raises OSError.

    In UTF-8 on any machine; what is no valid Unicode, as in the name of a file, is shown escaped.
    """
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, file)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
