"""Several sets of shards (sources) as one stream, in the proportion of their weights.

Each source gets some of the lanes of the stream, evenly spread, so every global batch has exactly the same
number of images of each source. A source has an endless order of its own: its n-th image does not depend
on the other sources, and is the same as if the source were alone with as many lanes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_tools.batches.order import Order
from data_tools.errors import UsageError
from data_tools.shards.labels import NO_LABEL
from data_tools.shards.shard_set import ShardSet


@dataclass(frozen=True)
class WeightedShards:
    """One set of shards and its weight; only the proportion of the weights matters."""

    shards: ShardSet
    weight: float = 1.0


class Mixture:
    """One or more sources, with the methods of a ShardSet and of an Order.

    The samples of the first source come first in the numbering, then those of the second, and so on.
    UsageError for weights or lanes that cannot work, and for sources with different classes.
    """

    def __init__(self, sources: list[WeightedShards], order: Order) -> None:
        """order: the seed, lanes, chunk and window of the mixture; its num_samples is that of all sources."""
        self.sources = [source.shards for source in sources]
        self.lanes_of = allot(order.lanes, [source.weight for source in sources])
        for shards, lanes in zip(self.sources, self.lanes_of, strict=True):
            if lanes == 0:
                raise UsageError(
                    f"{shards.folder} gets none of the {order.lanes} lanes by its weight in data.train: "
                    "raise data.lanes (it may be as large as train.batch_size), or leave the source out."
                )
        self._check_classes()
        self.order = order
        self.orders = [
            replace(order, num_samples=len(shards), lanes=lanes)
            for shards, lanes in zip(self.sources, self.lanes_of, strict=True)
        ]
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self._source_of_lane, self._lane_inside = _spread(self.lanes_of)

    def _check_classes(self) -> None:
        first = self.sources[0]
        for shards in self.sources[1:]:
            if shards.classes != first.classes:
                other, named = (shards, first) if first.classes else (first, shards)
                raise other.other_classes(named.classes, named.given)
            numbers = [s.num_classes if s.numeric else 0 for s in (shards, first)]
            if numbers[0] != numbers[1]:
                raise UsageError(
                    f"{shards.folder} has {numbers[0]} numbers as the label of an image and {first.folder} "
                    f"has {numbers[1]} (0: classes): mix sources with the same labels."
                )

    # As an Order

    @property
    def num_samples(self) -> int:
        """The samples of all sources together."""
        return int(self._starts[-1])

    @property
    def epoch_size(self) -> int:
        """Samples in an epoch: as many as the epochs of all sources have together, whatever the weights."""
        return sum(order.epoch_size for order in self.orders)

    def check(self, batch_size: int) -> None:
        """UsageError unless every global batch gets the same number of samples from each source."""
        self.order.check(batch_size)
        if len(self.sources) > 1 and self.order.lanes > batch_size:
            raise UsageError(
                f"data.lanes={self.order.lanes} is more than train.batch_size={batch_size}, so the batches "
                f"of a mixture would differ: set data.lanes to {batch_size} or a part of it."
            )

    def counts(self, batch_size: int) -> list[int]:
        """How many images of each source every global batch holds."""
        return [batch_size * lanes // self.order.lanes for lanes in self.lanes_of]

    def describe(self, batch_size: int) -> str:
        """The order and the sources in one line, for the start of a run."""
        text = f"order: chunk {self.order.chunk}, window {self.order.window}, lanes {self.order.lanes}"
        if len(self.sources) > 1:
            counts = self.counts(batch_size)
            parts = [f"{n} of {s.folder}" for n, s in zip(counts, self.sources, strict=True)]
            text += "; every batch: " + ", ".join(parts)
        return text

    def sample_at(self, positions: ArrayLike) -> NDArray[np.int64]:
        """As Order.sample_at()."""
        return self.locate(positions)[0]

    def locate(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As Order.locate()."""
        p = np.asarray(positions, dtype=np.int64)
        turn, lane = np.divmod(p, self.order.lanes)
        sources, inside = self._source_of_lane[lane], self._lane_inside[lane]
        samples, chunks = np.empty_like(p), np.empty_like(p)
        for number, order in enumerate(self.orders):
            mine = sources == number
            found = order.locate(turn[mine] * order.lanes + inside[mine])
            samples[mine], chunks[mine] = (part + self._starts[number] for part in found)
        return samples, chunks

    @property
    def window_size(self) -> int:
        """As Order.window_size."""
        return self.order.window_size

    def batch(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """As Order.batch()."""
        return self.order.batch(step, batch_size)

    def share(self, step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """As Order.share()."""
        return self.order.share(step, batch_size, rank, world_size)

    def substitute(self, position: int, attempt: int) -> int:
        """As Order.substitute(); the sample is of the source that the position belongs to."""
        number = int(self._source_of_lane[position % self.order.lanes])
        return int(self._starts[number]) + self.orders[number].substitute(position, attempt)

    def constants(self) -> dict[str, Any]:
        """All that the order depends on, for checkpoints; with one source that is its Order and its index."""
        return {
            "seed": self.order.seed,
            "num_samples": self.num_samples,
            "lanes": self.order.lanes,
            "chunk": self.order.chunk,
            "window": self.order.window,
            "index_sha256": self.index_sha256,
            **({"lanes_of": self.lanes_of} if len(self.sources) > 1 else {}),
        }

    # As a ShardSet

    def __len__(self) -> int:
        return self.num_samples

    @property
    def folder(self) -> str:
        """The folders of all sources, for messages."""
        return " + ".join(str(shards.folder) for shards in self.sources)

    @property
    def classes(self) -> list[str] | None:
        """The class names, the same in all sources, or None."""
        return self.sources[0].classes

    @property
    def num_classes(self) -> int:
        """The largest of the sources' num_classes."""
        return max(shards.num_classes for shards in self.sources)

    @property
    def multilabel(self) -> bool:
        """Whether samples of any source have lists of labels."""
        return any(shards.multilabel for shards in self.sources)

    @property
    def numeric(self) -> bool:
        """Whether labels are numbers to predict, in all sources or in none."""
        return self.sources[0].numeric

    @property
    def max_labels(self) -> int:
        """The most labels that a sample has."""
        return max(shards.max_labels for shards in self.sources)

    @property
    def index_sha256(self) -> str:
        """The index_sha256 of the only source; of several, the sha256 of theirs, joined in order."""
        return _joined([shards.index_sha256 for shards in self.sources])

    @property
    def file_sha256(self) -> str:
        """The same of their file_sha256."""
        return _joined([shards.file_sha256 for shards in self.sources])

    @property
    def notes(self) -> tuple[str, ...]:
        """As ShardSet.notes, of all sources."""
        return tuple(note for shards in self.sources for note in shards.notes)

    def keep_chunks(self, ranks: int, memory: int) -> bool:
        """Read chunks in one piece if those in use by one of `ranks` processes fit into `memory` bytes.

        Chunks in use are those of the present and of the next window of each lane. False if any source
        is still read sample by sample.
        """
        lanes = -(-self.order.lanes // ranks)
        in_use = 2 * lanes * self.order.window
        share = memory // len(self.sources)
        return all([shards.keep_chunks(self.order.chunk, in_use, share) for shards in self.sources])

    def prefetch(self, chunks: ArrayLike) -> None:
        """As ShardSet.prefetch()."""
        chunks = np.asarray(chunks)
        numbers = np.searchsorted(self._starts, chunks, side="right") - 1
        for number, shards in enumerate(self.sources):
            shards.prefetch(chunks[numbers == number] - self._starts[number])

    def read(self, i: int, chunk: int | None = None) -> bytes:
        """As ShardSet.read()."""
        shards, inside = self._find(i)
        return shards.read(inside, None if chunk is None else chunk - (i - inside))

    def label(self, i: int) -> int:
        """As ShardSet.label()."""
        shards, inside = self._find(i)
        return shards.label(inside)

    def labels_of(self, i: int) -> tuple[int, ...] | tuple[float, ...]:
        """As ShardSet.labels_of()."""
        shards, inside = self._find(i)
        return shards.labels_of(inside)

    def label_row(self, i: int) -> NDArray[np.int64] | NDArray[np.float32]:
        """As ShardSet.label_row(); as wide as the row of the source with the most labels."""
        shards, inside = self._find(i)
        row = shards.label_row(inside)
        if shards.numeric:
            return row
        padded = np.full(self.max_labels, NO_LABEL, np.int64)
        padded[: len(row)] = row
        return padded

    def key(self, i: int) -> str:
        """As ShardSet.key()."""
        shards, inside = self._find(i)
        return shards.key(inside)

    def shard_name(self, i: int) -> str:
        """As ShardSet.shard_name(); if there are several sources, with the folder of the shard."""
        shards, inside = self._find(i)
        name = shards.shard_name(inside)
        return name if len(self.sources) == 1 else str(shards.folder / name)

    def _find(self, i: int) -> tuple[ShardSet, int]:
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.sources[number], i - int(self._starts[number])


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def allot(lanes: int, weights: list[float]) -> list[int]:
    """How many of `lanes` each weight gets, by the method of the largest remainder.

    That is the whole part of its share; lanes that are left go to the largest remainders, of equal ones to
    the first. UsageError for a weight that is not above 0.
    """
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UsageError(f"data.train: every weight must be a number above 0, not {weights}.")
    shares = np.array(weights) / sum(weights) * lanes
    counts = np.floor(shares + 1e-9).astype(int)  # 1e-9 for rounding errors: 0.1 of 30 lanes is 3
    rest = np.argsort(-(shares - counts), kind="stable")[: lanes - counts.sum()]
    counts[rest] += 1
    return counts.tolist()


def _spread(lanes_of: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The source of each lane, and which of that source's lanes it is; both (lanes,). Evenly spread."""
    source = np.repeat(np.arange(len(lanes_of)), lanes_of)
    inside = np.concatenate([np.arange(lanes) for lanes in lanes_of])
    place = (inside + 0.5) / np.array(lanes_of)[source]
    order = np.lexsort((source, place))
    return source[order], inside[order]
