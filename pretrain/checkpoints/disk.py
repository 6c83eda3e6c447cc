"""Deleting files and folders of checkpoints, and waiting until they are on the disk."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from data_tools.errors import retrying

log = logging.getLogger("pretrain")


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

    def attempt() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    retrying(attempt)


def flush_to_disk(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
