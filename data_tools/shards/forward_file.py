"""A file that is read once from front to back, in large pieces, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


class ForwardFile:
    """seek() and read() over read_range(start, length), with a sha256 of all that passed.

    Only a caller that never goes back beyond the beginning of its last read() is served, as the tar
    reader is: at most that read and one window of bytes are held.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, window: int, start: int = 0
    ) -> None:
        self.size = size
        self._read_range, self._window = read_range, window
        self._position = self._first = self._loaded = start  # the buffer: bytes first to loaded
        self._buffer = b""
        self._hash = hashlib.sha256()

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        if self._position < self._first:
            raise ValueError(f"byte {self._position} has passed")
        end = min(self._position + length, self.size)
        while self._loaded < end:
            piece = self._read_range(self._loaded, min(self._window, self.size - self._loaded))
            self._hash.update(piece)
            kept = self._buffer[self._position - self._first :]
            self._first = self._loaded - len(kept)
            self._buffer = kept + piece
            self._loaded += len(piece)
        data = self._buffer[self._position - self._first : max(end, self._position) - self._first]
        self._position += len(data)
        return data

    def sha256(self) -> str:
        """The sha256 of the whole file in hex, for one that began at byte 0; reads what is left."""
        self.seek(self.size)
        while self._loaded < self.size:
            piece = self._read_range(self._loaded, min(self._window, self.size - self._loaded))
            self._hash.update(piece)
            self._loaded += len(piece)
        return self._hash.hexdigest()
