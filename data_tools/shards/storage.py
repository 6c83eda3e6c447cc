"""Byte ranges of shards, on a disk or behind a URL, as long as they are the shards that were indexed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

from data_tools.errors import DataError, cannot_read, retrying, shown
from data_tools.shards import remote
from data_tools.shards.descriptors import shards_at_once
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.remote import FileState
from data_tools.shards.urls import is_url

_LOCAL_PIECE, _REMOTE_PIECE = 1 << 20, 8 << 20  # bytes read at a time by a pass over a shard
Result = TypeVar("Result")


@dataclass(frozen=True)
class Expected:
    """What a shard must be: its size in bytes, and its sha256 in hex, where they are known.

    version: as in FileState. A file of another version is read once as a whole, to compare its sha256.
    """

    size: int
    version: str | None = None
    sha256: str = ""


class _LocalFile:
    """A file descriptor. It is closed when no thread refers to this object any more."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.state = _state_of(os.fstat(self.fd))

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class _LocalFolder:
    """The files of a folder. Those read last stay open, so many over all folders of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pread(self, name: str, start: int, length: int) -> tuple[bytes, FileState]:
        """Up to `length` bytes from byte `start` on, and the state of the file when it was opened."""
        try:
            file = _opened_files()(self, name)  # a reference keeps it open if the cache drops it now
            return os.pread(file.fd, length, start), file.state
        except OSError:
            _opened_files.cache_clear()  # descriptors may be stale after an outage of the server, or too many
            raise


@cache  # not at import: the limit is raised before the first shard is read
def _opened_files() -> Callable[[_LocalFolder, str], _LocalFile]:
    return lru_cache(maxsize=shards_at_once())(lambda folder, name: _LocalFile(folder.path / name))


class Storage:
    """Reads the files of a folder, by name, and URLs. Every method is thread-safe.

    expected: what files must be, by name; a file that is not in it must stay what it was when it was first
    looked at. Every method raises DataError for a file that is another one or, after some attempts, cannot be
    read; those that only look at a local file raise FileNotFoundError if it does not exist.
    """

    def __init__(self, folder: Path, expected: Mapping[str, Expected] | None = None) -> None:
        self._local = _LocalFolder(folder)
        self._expected = dict(expected or {})
        self._seen: set[str] = set()  # remote files, other than http, that were looked at
        self._hashing: dict[str, threading.Lock] = {}
        self._same: set[tuple[str, str | None]] = set()  # files and versions whose content was compared

    def expect(self, expected: Mapping[str, Expected]) -> None:
        """From now on, files must be what `expected` says."""
        self._expected |= expected

    def shown(self, name: str) -> str:
        """The path or URL of `name` for messages, without the credentials of a URL."""
        return shown(name) if is_url(name) else str(self._local.path / name)

    def state(self, name: str) -> FileState:
        """The size and the version of a file, as it is now."""
        if is_url(name):
            return remote.look(name)
        try:
            return _state_of(retrying(lambda: os.stat(self._local.path / name)))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable(name, error) from error

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        state = self.state(name)
        self._hold(name, state)
        return state.size

    def version(self, name: str) -> str | None:
        """The version of a file that was looked at or read."""
        return self._expected[name].version

    def differs(self, name: str) -> bool:
        """Whether the version of a file is not the expected one; DataError if its size is not."""
        return not self._fits(name, self.state(name))

    def read(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `start` on."""
        if is_url(name):
            return self._read_remote(name, start, length)
        data, state = self._pread(name, start, length)
        self._hold(name, state)
        if len(data) != length:
            raise DataError(f"{self.shown(name)} became shorter while it was read.")
        return data

    def open(self, name: str, size: int) -> ForwardFile:
        """A file of `size` bytes for one pass from front to back."""
        piece = _REMOTE_PIECE if is_url(name) else _LOCAL_PIECE
        return ForwardFile(lambda start, length: self.read(name, start, length), size, piece)

    def _pread(self, name: str, start: int, length: int) -> tuple[bytes, FileState]:
        try:
            return retrying(lambda: self._local.pread(name, start, length))
        except OSError as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: OSError) -> DataError:
        return cannot_read(DataError, f"{self.shown(name)} cannot be read: {error.strerror}.", error)

    def _read_remote(self, name: str, start: int, length: int) -> bytes:
        data, state = remote.fetch(name, start, length)
        if state is None and name not in self._seen:
            state = remote.look(name)
            self._seen.add(name)
        if state is not None:
            self._hold(name, state)
        return data

    def _hold(self, name: str, state: FileState) -> None:
        """DataError unless the file in this state can be the one that is expected."""
        if self._fits(name, state):
            return
        with self._hashing.setdefault(name, threading.Lock()):  # the other threads find its version accepted
            if self._fits(name, state):
                return
            expected = self._expected[name]
            if not expected.sha256:
                raise DataError(f"{self.shown(name)} changed while it was read: start again.")
            if self._sha256(name, state.size) != expected.sha256:
                raise DataError(
                    f"{self.shown(name)} is not what was indexed: it has another content since then. Run "
                    "python -m data_tools index again."
                )
            self._same.add((name, state.version))  # servers behind one name may each have a version
            self._expected[name] = replace(expected, version=state.version)

    def _fits(self, name: str, state: FileState) -> bool:
        """Whether size and version are the expected ones, where these are known; notes what was unknown."""
        expected = self._expected.get(name)
        if expected is None:
            self._expected[name] = Expected(state.size, state.version)
            return True
        if state.size != expected.size:
            raise DataError(
                f"{self.shown(name)}: {state.size} bytes, but {expected.size} when it was indexed: it has "
                "changed or is cut short. Copy it again, or run python -m data_tools index again."
            )
        if expected.version is None and state.version is not None:
            self._expected[name] = replace(expected, version=state.version)
        return (
            expected.version is None
            or not _comparable(expected.version, state.version)
            or expected.version == state.version
            or (name, state.version) in self._same
        )

    def _sha256(self, name: str, size: int) -> str:
        if is_url(name):
            return ForwardFile(
                lambda start, length: remote.read(name, start, length), size, _REMOTE_PIECE
            ).sha256()
        return ForwardFile(
            lambda start, length: self._pread(name, start, length)[0], size, _LOCAL_PIECE
        ).sha256()


def version_of(mtime_ns: int) -> str:
    """The version of a local file that was last written at this time."""
    return f"mtime_ns {mtime_ns}"


def _state_of(found: os.stat_result) -> FileState:
    return FileState(found.st_size, version_of(found.st_mtime_ns))


def _comparable(one: str, other: str | None) -> bool:
    """Whether two versions are of one kind: an ETag says nothing about a Last-Modified."""
    return other is not None and one.partition(" ")[0] == other.partition(" ")[0]
