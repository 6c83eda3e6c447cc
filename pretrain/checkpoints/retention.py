"""The checkpoints of a run: which stay, which go, which are set aside, and what `latest` and `best` name."""

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
    """Which checkpoints stay: the newest `keep` (0: all), every one whose step `every` divides, the best."""

    keep: int = 0
    every: int = 0

    def stale(self, root: Path, whole: Callable[[Path], bool] = lambda path: True) -> list[Path]:
        """The others under `root`. Of those that would stay, one that is not `whole` does not count."""
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


def delete(checkpoint: Path) -> bool:
    """Delete a published checkpoint; as `remove`. Renamed first, so that no stop leaves a part of it."""
    doomed = temporary_folder(checkpoint)
    try:
        os.rename(checkpoint, doomed)
    except OSError as error:
        log.warning("%s: it could not be deleted: %s", checkpoint, error.strerror)
        return False
    return remove(doomed)


def remove(path: Path) -> bool:
    """`erase` that warns, and returns False, where it fails: what lies about too long harms nothing."""
    try:
        erase(path)
    except OSError as error:
        log.warning("%s: it could not be deleted: %s; delete it yourself", path, error.strerror)
        return False
    return True


def erase(path: Path) -> None:
    """Delete a folder, a file, or a link but not what it leads to, if it is there. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_incomplete(root: Path) -> list[str]:
    """Delete what interrupted saves left under `root`; returns the names."""
    return [path.name for path in sorted(root.glob("*.tmp")) if remove(path)]


def settle(root: Path, used: Path) -> None:
    """Put `root` in order for a run that goes on from `used`, the newest whole checkpoint there.

    Newer ones are damaged: they get another name, so that they are neither counted nor loaded. `latest` is
    made to name `used`. Raises UserError where that cannot be written.
    """
    try:
        for path in complete(root):
            if int(path.name[5:]) > int(used.name[5:]):
                log.warning("%s is damaged and set aside as %s", path, _set_aside(path).name)
        if _read(root / "latest").strip() != used.name.encode():
            point(root / "latest", used.name)
    except OSError as error:
        raise UserError(f"{root}: it cannot be put in order: {error}", shared=True) from None


def _set_aside(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged" + (f"-{n}" if n > 1 else "")) for n in count(1))
    target = next(name for name in names if not os.path.lexists(name))
    os.rename(path, target)
    return target


def read_best(root: Path) -> dict[str, Any]:
    """The file `best`: checkpoint, step and `Evaluation.score`. Empty without one, or without its folder."""
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


def point(pointer: Path, text: str) -> None:
    """Replace a pointer file in one go."""
    temporary = pointer.with_name(pointer.name + ".tmp")
    temporary.write_text(text + "\n")
    flush(temporary)
    os.replace(temporary, pointer)
    flush(pointer.parent)


def flush(path: Path) -> None:
    """Down to the disk."""
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
