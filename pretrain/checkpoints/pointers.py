"""The files `latest` and `best`, each of which names a checkpoint beside it.

`best` moves on only when its checkpoint is published. Until then `best.next` holds what it will be, so that a
job that is killed in between leaves no wrong name and loses none.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, retrying

from .checkpoint import NAME
from .disk import erase_or_warn, flush_to_disk

log = logging.getLogger("pretrain")


def read_best(root: Path, name: str = "best") -> dict[str, Any]:
    """The file `best`: {"checkpoint", "step", "score"}, the last from `Evaluation.score`.

    Empty if the file or the checkpoint that it names is missing. Raises UserError if it cannot be read.
    """
    try:
        best = json.loads(read_pointer(root / name))
    except (ValueError, RecursionError):
        return {}
    known = (
        isinstance(best, dict)
        and NAME.fullmatch(str(best.get("checkpoint")))
        and type(best.get("step")) is int
        and isinstance(best.get("score"), float)
        and not math.isnan(best["score"])
    )
    return best if known and (root / best["checkpoint"]).is_dir() else {}


def best_text(checkpoint: str, step: int, score: float) -> str:
    """The content of the file `best`."""
    return json.dumps({"checkpoint": checkpoint, "step": step, "score": score})


def announce_best(root: Path, text: str) -> None:
    """Note what `settle_best` makes the file `best` once its checkpoint is published. Raises OSError."""
    retrying(lambda: _write_pointer(root / "best.next", text))


def settle_best(root: Path) -> None:
    """Let `best` name the checkpoint that was announced, if it is published; a warning if that fails."""
    announced = root / "best.next"
    if not read_best(root, announced.name) or point(root / "best", read_pointer(announced).decode().strip()):
        erase_or_warn(announced)


def point(pointer: Path, text: str) -> bool:
    """Replace the file `pointer` (`latest` or `best`); a warning and False if that fails.

    No checkpoint is harmed by that.
    """
    try:
        retrying(lambda: _write_pointer(pointer, text))
    except OSError as error:
        log.warning("%s could not be written: %s; the checkpoint is whole", pointer, error.strerror or error)
        erase_or_warn(_temporary(pointer))
        return False
    return True


def _write_pointer(pointer: Path, text: str) -> None:
    """Replace the file at once, so that no reader sees a part of it."""
    temporary = _temporary(pointer)
    temporary.write_text(text + "\n", encoding="utf-8")
    flush_to_disk(temporary)
    os.replace(temporary, pointer)
    flush_to_disk(pointer.parent)


def _temporary(pointer: Path) -> Path:
    return pointer.with_name(f"{pointer.name}.tmp")


def read_pointer(pointer: Path) -> bytes:
    """The content of a pointer file; empty if there is none. Raises UserError if it cannot be read."""
    try:
        return retrying(pointer.read_bytes)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"{pointer} cannot be read: {error.strerror or error}") from None
