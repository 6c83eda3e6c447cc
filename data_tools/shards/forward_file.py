"""A file that is read once from front to back, in large pieces, from a disk or a URL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


class ForwardFile:
    """seek() and read() over read_range(start, length), with a sha256 of all bytes that were read.

    A caller must never seek to a byte before the beginning of its last read(); the tar reader does not.
    So no more than that read and one piece of `piece` bytes are in memory.
    """

    def __init__(
        self, read_range: Callable[[int, int], bytes], size: int, piece: int, start: int = 0
    ) -> None:
        self.size = size
        self._read_range, self._piece = read_range, piece
        self._position = self._first = self._loaded = start  # the buffer holds bytes first to loaded
        self._buffer = b""
        self._hash = hashlib.sha256()

    def seek(self, position: int) -> None:
        """The next read() begins at byte `position`."""
        self._position = position

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file. ValueError for bytes no longer held."""
        if self._position < self._first:
            raise ValueError(f"byte {self._position} has passed")
        end = min(self._position + length, self.size)
        while self._loaded < end:
            piece = self._next_piece()
            kept = self._buffer[self._position - self._first :]
            self._first = self._loaded - len(piece) - len(kept)
            self._buffer = kept + piece
        data = self._buffer[self._position - self._first : max(end, self._position) - self._first]
        self._position += len(data)
        return data

    def sha256(self) -> str:
        """The sha256 of the whole file in hex, if reading began at byte 0; reads the rest first."""
        self.seek(self.size)
        while self._loaded < self.size:
            self._next_piece()
        return self._hash.hexdigest()

    def _next_piece(self) -> bytes:
        piece = self._read_range(self._loaded, min(self._piece, self.size - self._loaded))
        self._hash.update(piece)
        self._loaded += len(piece)
        return piece
