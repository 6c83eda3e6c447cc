"""The checkpoints of a run: which stay, which are deleted or set aside, and what `latest` and `best` name."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from data_tools.errors import UserError

from .checkpoint import NAME, complete, temporary_folder

log = logging.getLogger("pretrain")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `keep` (0: all), those at multiples of step `every`, the best."""

    keep: int = 0
    every: int = 0

    def stale(self, root: Path, whole: Callable[[Path], bool] = lambda path: True) -> list[Path]:
        """The checkpoints under `root` to delete, newest first.

        One for which whole(path) is False does not count towards `keep`.
        """
        if not self.keep:
            return []
        best = read_best(root).get("checkpoint")
        stale, kept = [], 0
        for path in complete(root):
            spared = path.name == best or (self.every and int(path.name[5:]) % self.every == 0)
            if kept < self.keep or spared:
                kept += whole(path)
            else:
                stale.append(path)
        return stale


def delete_checkpoint(checkpoint: Path) -> bool:
    """Delete a published checkpoint; a warning and False if that fails.

    It is renamed first, so that an interruption does not leave part of a checkpoint that looks complete.
    """
    doomed = temporary_folder(checkpoint)
    try:
        os.rename(checkpoint, doomed)
    except OSError as error:
        log.warning("%s: it could not be deleted: %s", checkpoint, error.strerror)
        return False
    return erase_or_warn(doomed)


def erase_or_warn(path: Path) -> bool:
    """`erase`; a warning and False if that fails, as a file that stays too long does no harm."""
    try:
        erase(path)
    except OSError as error:
        log.warning("%s: it could not be deleted: %s; delete it yourself", path, error.strerror)
        return False
    return True


def erase(path: Path) -> None:
    """Delete a folder, a file or a link (not its target) if it exists. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_incomplete(root: Path) -> list[str]:
    """Delete the folders that interrupted saves left under `root`; returns their names."""
    return [path.name for path in sorted(root.glob("*.tmp")) if erase_or_warn(path)]


def set_aside_damaged(root: Path, used: Path) -> None:
    """Rename the checkpoints under `root` that are newer than `used`, and let `latest` name `used`.

    Called when `used` is the newest whole one. The newer ones are damaged; under another name they are
    neither counted nor loaded. Raises UserError if the folder cannot be changed.
    """
    try:
        for path in complete(root):
            if int(path.name[5:]) > int(used.name[5:]):
                log.warning("%s is damaged and set aside as %s", path, _set_aside(path).name)
        if _read(root / "latest").strip() != used.name.encode():
            write_pointer(root / "latest", used.name)
    except OSError as error:
        raise UserError(f"{root}: it cannot be put in order: {error}", shared=True) from None


def _set_aside(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged" + (f"-{n}" if n > 1 else "")) for n in count(1))
    target = next(name for name in names if not os.path.lexists(name))
    os.rename(path, target)
    return target


def read_best(root: Path) -> dict[str, Any]:
    """The file `best`: {"checkpoint", "step", "score"}, the last from `Evaluation.score`.

    Empty if the file or the checkpoint that it names is missing.
    """
    try:
        best = json.loads(_read(root / "best"))
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


def write_pointer(pointer: Path, text: str) -> None:
    """Replace the file `pointer` (`latest` or `best`) at once, so that no reader sees a part of it."""
    temporary = pointer.with_name(pointer.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    flush_to_disk(temporary)
    os.replace(temporary, pointer)
    flush_to_disk(pointer.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(pointer: Path) -> bytes:
    """The content of a pointer file; empty if it cannot be read."""
    try:
        return pointer.read_bytes()
    except OSError:
        return b""
