"""The checkpoints of a run: which stay, and which are deleted or set aside."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from data_tools.errors import UserError, retrying

from .checkpoint import complete, temporary_folder
from .disk import erase_or_warn
from .pointers import point, read_best, read_pointer

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
        best = [read_best(root, name).get("checkpoint") for name in ("best", "best.next")]
        stale, kept = [], 0
        for path in complete(root):
            spared = path.name in best or (self.every and int(path.name[5:]) % self.every == 0)
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
        retrying(lambda: os.rename(checkpoint, doomed))
    except OSError as error:
        log.warning("%s: it could not be deleted: %s", checkpoint, error.strerror)
        return False
    return erase_or_warn(doomed)


def remove_incomplete(root: Path) -> list[str]:
    """Delete the folders that interrupted saves left under `root`; returns their names."""
    return [path.name for path in retrying(lambda: sorted(root.glob("*.tmp"))) if erase_or_warn(path)]


def set_aside_damaged(root: Path, used: Path) -> None:
    """Rename the checkpoints under `root` that are newer than `used`, and let `latest` name `used`.

    Called when `used` is the newest whole one. The newer ones are damaged; under another name they are
    neither counted nor loaded. Raises UserError if the folder cannot be changed.
    """
    try:
        for path in complete(root):
            if int(path.name[5:]) > int(used.name[5:]):
                log.warning("%s is damaged and set aside as %s", path, _set_aside(path).name)
        if read_pointer(root / "latest").strip() != used.name.encode():
            point(root / "latest", used.name)
    except OSError as error:
        raise UserError(f"{root}: it cannot be put in order: {error}", shared=True) from None


def _set_aside(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.damaged" + (f"-{n}" if n > 1 else "")) for n in count(1))
    target = next(name for name in names if not os.path.lexists(name))
    retrying(lambda: os.rename(path, target))
    return target
