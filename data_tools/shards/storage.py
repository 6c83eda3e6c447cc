"""Byte ranges of shards, on a disk or behind a URL."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from data_tools.errors import DataError
from data_tools.shards.forward_file import ForwardFile

_OPEN_FILES = 256
_LOCAL_PIECE, _REMOTE_PIECE = 1 << 20, 8 << 20  # bytes read at a time by a pass over a shard


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL. True for pipe: too, so that check_scheme() can refuse it."""
    return "://" in str(path) or str(path).startswith("pipe:")


class _LocalFile:
    """A file descriptor. It is closed when no thread refers to this object any more."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Storage:
    """Reads the files of a folder, by name, and URLs. Every method is thread-safe.

    Every method raises DataError for a file that cannot be read, OSError for a local one that does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._local = lru_cache(maxsize=_OPEN_FILES)(lambda name: _LocalFile(folder / name))

    def shown(self, name: str) -> str:
        """The path or URL of `name` for messages, without the credentials of a URL."""
        return _remote().shown(name) if is_url(name) else str(self._folder / name)

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return _remote().size(name) if is_url(name) else (self._folder / name).stat().st_size

    def read(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `start` on."""
        if is_url(name):
            return _remote().read(name, start, length)
        file = self._local(name)  # a reference, so that the file stays open if the cache drops it now
        data = os.pread(file.fd, length, start)
        if len(data) != length:
            raise DataError(f"{self._folder / name} became shorter while it was read.")
        return data

    def open(self, name: str, size: int) -> ForwardFile:
        """A file of `size` bytes for one pass from front to back."""
        piece = _REMOTE_PIECE if is_url(name) else _LOCAL_PIECE
        return ForwardFile(lambda start, length: self.read(name, start, length), size, piece)


def _remote() -> ModuleType:
    from data_tools.shards import remote  # here, because only URLs need it

    return remote
