"""Reading single samples out of indexed shards by their offset."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_tools.errors import DataError, UsageError, cannot_read, retrying, shown
from data_tools.shards.chunks import ChunkCache
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.freshness import (
    check_local,
    note_of_added,
    note_of_classes,
    note_of_compared,
    storage_of,
)
from data_tools.shards.index import CLASSES_NAME, ScannedShards, load_classes, read_shards
from data_tools.shards.index_file import open_index
from data_tools.shards.labels import NO_LABEL, NO_RULES, LabelRules
from data_tools.shards.names import Shards, shards_in, written
from data_tools.shards.samples import Problem
from data_tools.shards.storage import Storage
from data_tools.shards.tables import HEADER_PIECE, Tables
from data_tools.shards.tar import member_name
from data_tools.shards.urls import is_url

_MAX_WASTE = 4  # a chunk is read in one piece if that is at most this many times the bytes of its images


class ShardSet:
    """The samples 0 to len - 1 of indexed shards. Every method may be called from any thread.

    classes: class names in the order of the labels, or None; num_classes: their number, or the
    highest label + 1; multilabel: whether samples have lists of labels, of up to max_labels;
    numeric: whether labels are numbers to predict, num_classes of them for each sample;
    remote: whether any shard is read by URL; index_sha256: the same for the same shards and tables
    (Index.identity()); file_sha256: of the index file; left_out: how many samples cannot be used; problems:
    which ones, and said: what was taken for the labels, both known only after scan(); notes: what else the
    user should know, a sentence each; given: the shards as they stand on a command line; names_made: whether
    index made the class names of the labels.
    """

    given, names_made = "", False
    index_sha256 = file_sha256 = ""
    left_out = 0
    said = "those of the index"
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        shards: Sequence[tuple[str, int]],
        tables: Tables,
        num_classes: int,
    ) -> None:
        """shards: the name or URL of each, and its size in bytes."""
        self.folder, self.classes, self.num_classes = folder, load_classes(folder), num_classes
        self.table, self.label_table = tables.rows, tables.labels
        self.multilabel, self.max_labels = tables.labels is not None, tables.max_labels
        self.numbers, self.numeric = tables.numbers, tables.numbers is not None
        self._shards = shards
        names = [shown(name) for name, _ in shards]
        if len(set(names)) < len(names):  # URLs that differ in what is not shown
            names = [f"{name}#{number}" for number, name in enumerate(names)]
        self._names = names
        self.remote = any(is_url(name) for name, _ in shards)
        self._storage = storage
        self._chunk = 1
        self._cache: ChunkCache | None = None

    @classmethod
    def open(cls, shards: Shards) -> ShardSet:
        """Open indexed shards: their folder, their shardindex.json, a pattern or a list of them.

        Raises UsageError if there is nothing to open, DataError if a local shard is missing or is not what
        was indexed; remote ones are compared with the index when they are read.
        """
        try:
            return retrying(lambda: cls._open(shards))
        except OSError as error:
            text = f"{error.filename or shards} cannot be read: {error.strerror or error}."
            raise cannot_read(DataError, text, error) from error

    @classmethod
    def _open(cls, shards: Shards) -> ShardSet:
        index = open_index(shards)
        storage = storage_of(index)
        compared = check_local(index, storage)
        listed = [(entry["url"], entry["filesize"]) for entry in index.shardlist]
        opened = cls(storage, index.folder, listed, index.tables, index.content["num_classes"])
        if opened.classes is not None and not opened.numeric and len(opened.classes) < opened.num_classes:
            raise DataError(
                f"{opened.folder / CLASSES_NAME} has {len(opened.classes)} names, but there are "
                f"{opened.num_classes} classes in the index: add the missing names, or run python -m "
                "data_tools index again."
            )
        opened.index_sha256, opened.file_sha256 = index.identity(), index.file_sha256
        opened.given, opened.names_made = written(shards), "classes" in index.content
        opened.left_out = index.content.get("left_out", 0)
        notes = (note_of_compared(index, compared), note_of_added(index), note_of_classes(index))
        opened.notes = tuple(filter(None, notes))
        return opened

    @classmethod
    def scan(cls, folder: Path, rules: LabelRules = NO_RULES, names: Sequence[str] = ()) -> ShardSet:
        """The *.tar shards of a folder, or only `names`, without an index; reads each of them once.

        Errors as read_shards().
        """
        storage = Storage(folder)
        return cls.of_scans(storage, folder, read_shards(storage, folder, names or shards_in(folder), rules))

    @classmethod
    def of_scans(cls, storage: Storage, folder: Path, found: ScannedShards) -> ShardSet:
        """The samples that were found in the shards of a folder."""
        listed = [(scan.name, scan.size) for scan in found.scans]
        shards = cls(storage, folder, listed, found.tables, found.num_classes)
        shards.classes, shards.said = found.meaning.classes or shards.classes, found.meaning.said
        shards.problems, shards.left_out = found.problems, len(found.problems)
        return shards

    def other_classes(self, classes: list[str] | None, of: str) -> UsageError:
        """The error for shards that have other classes than `of`, with the command that gives them these."""
        both = zip_longest(*(map("'{}'".format, names or ()) for names in (self.classes, classes)))
        label, pair = next((n, pair) for n, pair in enumerate(both) if pair[0] != pair[1])
        here, there = (name or "no class" for name in pair)
        command = f"index {self.given}" if self.names_made else f"pack {self.given} NEW"
        if self.remote:
            command = f"index URL... --out {self.given}"
        return UsageError(
            f"{self.given}: its classes.json differs from that of {of}: label {label} is {here} there and "
            f"{there} in {of}; give it the same: python -m data_tools {command} --classes {of}"
        )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return len(self._shards)

    @property
    def mean_bytes(self) -> float:
        """The mean number of bytes of a sample in the shards, headers and labels included."""
        return sum(size for _, size in self._shards) / len(self.table)

    def read(self, i: int, chunk: int | None = None) -> bytes:
        """The encoded image of sample i.

        chunk: the first sample of its chunk, as Order.locate() gives it. After keep_chunks() the whole
        chunk is read in one piece and kept for its other samples. DataError if it cannot be read.
        """
        if self._cache is None or chunk is None:
            row = self.table[i]
            name = self._shards[int(row["shard"])][0]
            return self._storage.read(name, int(row["offset"]), int(row["size"]))
        image = self._cache.get(chunk).get(i)
        return self.read(i) if image is None else image

    def keep_chunks(self, chunk: int, in_use: int, memory: int = 2 << 30) -> bool:
        """Read chunks of `chunk` samples in one piece, if `in_use` of them fit into `memory` bytes.

        False if they do not fit: each chunk would be read again for nearly every sample. Then samples
        are still read one by one.
        """
        if chunk > 1 and in_use * chunk * self.mean_bytes <= memory:
            self._chunk, self._cache = chunk, ChunkCache(self._read_chunk, memory)
        return self._cache is not None

    def prefetch(self, chunks: ArrayLike) -> None:
        """Begin to read the chunks that begin at these samples; does nothing without keep_chunks()."""
        if self._cache is not None:
            self._cache.prefetch(np.asarray(chunks).tolist())

    def label(self, i: int) -> int:
        """The label of sample i, the first of several, -1 for none."""
        return int(self.table["label"][i])

    def labels(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The label() of several samples, in their shape."""
        return self.table["label"][np.asarray(ids)].astype(np.int64)

    def labels_of(self, i: int) -> tuple[int, ...] | tuple[float, ...]:
        """All labels of sample i; integers for classes, floats for numbers to predict."""
        if self.numbers is not None:
            return tuple(self.numbers[i].tolist())
        if self.label_table is None:
            return (self.label(i),) if self.label(i) != NO_LABEL else ()
        base = len(self.table) + 1
        first, last = self.label_table[i], self.label_table[i + 1]
        return tuple(self.label_table[base + first : base + last].tolist())

    def label_row(self, i: int) -> NDArray[np.int64] | NDArray[np.float32]:
        """All labels of sample i, int64 (max_labels,), then -1; or its numbers, float32 (num_classes,)."""
        if self.numbers is not None:
            return np.array(self.numbers[i])
        row = np.full(self.max_labels, NO_LABEL, np.int64)
        labels = self.labels_of(i)
        row[: len(labels)] = labels
        return row

    def key(self, i: int) -> str:
        """The key of sample i: its member's path up to the first dot of the base name."""
        folder, slash, base = self.member(i).rpartition("/")
        return folder + slash + base.partition(".")[0]

    def member(self, i: int) -> str:
        """The name of the image of sample i inside its shard."""
        row = self.table[i]
        name, size = self._shards[int(row["shard"])]
        header = int(row["header"])
        file = ForwardFile(
            lambda start, length: self._storage.read(name, start, length), size, HEADER_PIECE, header
        )
        return member_name(file, self._storage.shown(name), size, header)

    def shard_name(self, i: int) -> str:
        """The file name of the shard that holds sample i, or its URL without what is secret in it."""
        return self._names[int(self.table["shard"][i])]

    def _read_chunk(self, first: int) -> dict[int, bytes]:
        ids = np.arange(first, first + self._chunk) % len(self)
        rows = self.table[ids]
        images: dict[int, bytes] = {}
        for shard in np.unique(rows["shard"]):
            inside = rows["shard"] == shard
            images |= zip(ids[inside].tolist(), self._read_rows(rows[inside]), strict=True)
        return images

    def _read_rows(self, rows: NDArray[np.void]) -> list[bytes]:
        """The images of some rows of one shard, read in one piece if they lie close together."""
        name, _ = self._shards[int(rows["shard"][0])]
        offsets, sizes = rows["offset"].tolist(), rows["size"].tolist()
        start = min(offsets)
        length = max(map(sum, zip(offsets, sizes, strict=True))) - start
        if length > _MAX_WASTE * (sum(sizes) + len(rows) * HEADER_PIECE):
            return [self._storage.read(name, *part) for part in zip(offsets, sizes, strict=True)]
        data = self._storage.read(name, start, length)
        return [data[o - start : o - start + size] for o, size in zip(offsets, sizes, strict=True)]
