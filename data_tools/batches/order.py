"""The order of images: the sample at position p of an endless stream is a function of (seed, p).

It does not depend on nodes, ranks, threads or engines. So a resumed job continues at position p on any
number of processes and needs no other state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_tools.errors import DataError, UsageError
from data_tools.random_numbers import Stream, hash64, permute

_CHUNK_BYTES, _REMOTE_WINDOW = 12 << 20, 8  # bytes, chunks: of default_layout()


@dataclass(frozen=True)
class Order:
    """The "lanes" order: position p belongs to lane p mod lanes, and each lane is shuffled by itself.

    A chunk is `chunk` neighbouring samples, which are read together. A window is `window` chunks of one
    lane, whose samples are shuffled among themselves. With chunk = window = 1 every epoch is an exact
    random permutation; otherwise an epoch leaves out num_samples mod chunk samples, different ones each
    time. DataError for an empty set, UsageError for a value that cannot work.
    """

    seed: int
    num_samples: int
    lanes: int
    chunk: int = 1
    window: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise DataError("The data set holds no samples: nothing can be trained on it.")
        for name in ("lanes", "chunk", "window"):
            if getattr(self, name) < 1:
                raise UsageError(f"data.{name} must be at least 1, not {getattr(self, name)}.")
        if self.chunk > self.num_samples:
            raise UsageError(
                f"data.chunk={self.chunk} is more than the {self.num_samples} samples there are: "
                f"set data.chunk to {self.num_samples} or less."
            )

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch: the largest multiple of `chunk` up to num_samples."""
        return self.num_samples // self.chunk * self.chunk

    def check(self, batch_size: int) -> None:
        """UsageError unless lanes divides batch_size or batch_size divides lanes."""
        if batch_size < 1:
            raise UsageError(f"train.batch_size must be at least 1, not {batch_size}.")
        if batch_size % self.lanes and self.lanes % batch_size:
            if self.lanes > batch_size:
                below = self.lanes // batch_size * batch_size
                near = (below, below + batch_size)
            else:
                divisors = [d for d in range(1, batch_size + 1) if batch_size % d == 0]
                near = (
                    max(d for d in divisors if d < self.lanes),
                    min(d for d in divisors if d > self.lanes),
                )
            raise UsageError(
                f"data.lanes={self.lanes} neither divides train.batch_size={batch_size} nor is a "
                f"multiple of it: set data.lanes to {near[0]} or {near[1]}."
            )

    def sample_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The sample at each position; int64 in, int64 of the same shape out."""
        return self.locate(positions)[0]

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sample at each position and the first sample of its chunk, both int64, in the positions' shape.

        A chunk is samples first to first + chunk - 1; after the last sample of the set comes sample 0.
        """
        p = np.asarray(positions, dtype=np.int64)
        size, chunk, window, lanes = self.num_samples, self.chunk, self.window, self.lanes
        inside: int | NDArray[np.int64] = 0
        if chunk == window == 1:
            slot = p
        else:
            turn, lane = np.divmod(p, lanes)
            w, q = np.divmod(turn, window * chunk)
            q = permute(q, window * chunk, hash64(self.seed, lane, w))
            slot, inside = (w * window + q // chunk) * lanes + lane, q % chunk
        epoch, c = np.divmod(slot, size // chunk)
        key = hash64(self.seed, epoch)
        first = permute(c, size // chunk, key) * chunk
        if size % chunk == 0:
            return first + inside, first
        first = (first + (key % np.uint64(size)).astype(np.int64)) % size
        return (first + inside) % size, first

    @property
    def window_size(self) -> int:
        """Positions in one window of all lanes: p + window_size lies in the next window of the lane of p."""
        return self.lanes * self.window * self.chunk

    def batch(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """The positions of global batch `step`, (batch_size,), sorted by lane (stable)."""
        return self._slots(step, batch_size, 0, batch_size)

    def share(self, step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """The positions of one rank, (batch_size / world_size,): its part of batch().

        UsageError if batch_size is not a multiple of world_size.
        """
        if batch_size % world_size:
            raise UsageError(
                f"train.batch_size={batch_size} is not divisible by {world_size} processes: "
                f"set it to a multiple of {world_size}."
            )
        size = batch_size // world_size
        return self._slots(step, batch_size, rank * size, (rank + 1) * size)

    def _slots(self, step: int, batch_size: int, first: int, last: int) -> NDArray[np.int64]:
        """batch(step, batch_size)[first:last]. Right only for sizes that check() accepts."""
        slots = np.arange(first, last, dtype=np.int64)
        if batch_size > self.lanes:
            lane, turn = np.divmod(slots, batch_size // self.lanes)
            slots = turn * self.lanes + lane
        return step * batch_size + slots

    def substitute(self, position: int, attempt: int) -> int:
        """The sample to take at `position` after `attempt` unreadable ones."""
        return int(hash64(self.seed, Stream.SUBSTITUTE, position, attempt) % np.uint64(self.num_samples))


def default_layout(
    num_samples: int, batch_size: int, remote: bool, mean_sample_bytes: float
) -> tuple[int, int, int]:
    """(chunk, window, lanes) where data.chunk, data.window and data.lanes are not given.

    Local shards: (1, 1, batch_size), so each epoch is an exact permutation. Shards behind URLs: about
    batch_size / 4 lanes (its least divisor that is not below), windows of 8 chunks, and chunks of a power
    of two samples, up to 12 MiB; smaller chunks where the set would not fill one window of every lane.
    """
    lanes = min(d for d in range(1, batch_size + 1) if batch_size % d == 0 and 4 * d >= batch_size)
    most = min(_CHUNK_BYTES / mean_sample_bytes, num_samples / (_REMOTE_WINDOW * lanes))
    if not remote or most < 2:
        return 1, 1, batch_size
    return 2 ** int(np.log2(most)), _REMOTE_WINDOW, lanes
