"""Reading single samples out of indexed shards by their offset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_tools.errors import DataError, UsageError
from data_tools.shards.chunks import ChunkCache
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.index import (
    INDEX_NAME,
    LABELS_NAME,
    NUMBERS_NAME,
    OFFSETS_NAME,
    load_classes,
    read_shards,
)
from data_tools.shards.index import shard_names as names_in
from data_tools.shards.labels import NO_LABEL, NO_RULES, LabelRules
from data_tools.shards.remote import check_scheme
from data_tools.shards.samples import ROW, Problem
from data_tools.shards.storage import Storage, is_url
from data_tools.shards.tables import HEADER_PIECE, Tables
from data_tools.shards.tar import member_name

_MAX_WASTE = 4  # a chunk is read in one piece if that is at most this many times the bytes of its images


class ShardSet:
    """The samples 0 to len - 1 of indexed shards. Every method may be called from any thread.

    classes: class names in the order of the labels, or None; num_classes: their number, or the
    highest label + 1; multilabel: whether samples have lists of labels, of up to max_labels;
    numeric: whether labels are numbers to predict, num_classes of them for each sample;
    remote: whether any shard is read by URL; index_sha256: changes with any change of the shards or
    the tables; left_out: how many samples cannot be used; problems: which ones, and said: what was taken for
    the labels, both known only after scan().
    """

    def __init__(
        self,
        folder: Path,
        shards: list[tuple[str, int]],
        tables: Tables,
        num_classes: int,
        index_sha256: str = "",
        problems: tuple[Problem, ...] = (),
    ) -> None:
        self.folder, self.classes, self.num_classes = folder, load_classes(folder), num_classes
        self.index_sha256, self.problems = index_sha256, problems
        self.left_out, self.said = len(problems), "those of the index"
        self.table, self.label_table = tables.rows, tables.labels
        self.multilabel, self.max_labels = tables.labels is not None, tables.max_labels
        self.numbers, self.numeric = tables.numbers, tables.numbers is not None
        self._shards = shards  # name or URL, and size in bytes
        self.remote = any(is_url(name) for name, _ in shards)
        self._storage = Storage(folder)
        self._chunk = 1
        self._cache: ChunkCache | None = None

    @classmethod
    def open(cls, path: str | Path) -> ShardSet:
        """Open the indexed shards at `path`, which is their folder or their shardindex.json.

        Raises UsageError if there is nothing to open, DataError if a local shard is missing or its
        size is not the one in the index.
        """
        folder, index, sha256 = load_index(path)
        storage = Storage(folder)
        for entry in index["shardlist"]:
            if not is_url(entry["url"]) and (problem := size_problem(storage, entry)):
                raise DataError(f"{folder / entry['url']}: {problem}.")
        listed = [(entry["url"], entry["filesize"]) for entry in index["shardlist"]]
        shards = cls(folder, listed, _open_tables(folder, index), index["num_classes"], sha256)
        shards.left_out = index.get("left_out", 0)
        return shards

    @classmethod
    def scan(cls, folder: Path, rules: LabelRules = NO_RULES) -> ShardSet:
        """The *.tar shards of a folder without an index; reads each of them once.

        Errors as build_index().
        """
        found = read_shards(folder, names_in(folder), rules)
        listed = [(scan.name, scan.size) for scan in found.scans]
        shards = cls(folder, listed, found.tables, found.num_classes, problems=found.problems)
        shards.classes, shards.said = found.meaning.classes or shards.classes, found.meaning.said
        return shards

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
        """The file name or URL of the shard that holds sample i."""
        return self._shards[int(self.table["shard"][i])][0]

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


def load_index(path: str | Path) -> tuple[Path, dict[str, Any], str]:
    """The folder, the content and the sha256 of the index at `path`. The shards are not opened.

    UsageError, saying what to do, if there is no valid index.
    """
    if is_url(path):
        check_scheme(str(path))
        raise UsageError(
            f"{path} is a URL: run python -m data_tools index URL --out DIR once, and give DIR instead "
            "(or set data.sequential=true, if the server sends no parts of files)."
        )
    path = Path(path)
    file = path if path.suffix == ".json" else path / INDEX_NAME
    folder = file.parent
    if not folder.is_dir():
        raise UsageError(f"{path} does not exist: make shards with python -m data_tools pack SRC DST.")
    if not file.is_file():
        if any(folder.glob("*.tar")):
            raise UsageError(
                f"{folder} has shards but no {INDEX_NAME}: run python -m data_tools index {folder}"
            )
        inside = sorted(file.parent for file in folder.glob(f"*/{INDEX_NAME}"))
        raise UsageError(
            f"{folder} holds no shards itself: did you mean {' or '.join(map(str, inside[:3]))}?"
            if inside
            else f"{folder} holds no shards: make some with python -m data_tools pack SRC DST."
        )
    data = file.read_bytes()
    try:
        index = json.loads(data)
        for entry in index["shardlist"]:
            _check_name(entry["url"], file)
            int(entry["nsamples"]), int(entry["filesize"])
        int(index["samples"]), int(index["num_classes"]), str(index["offsets"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is not an index of data_tools ({type(error).__name__}: {error}): "
            f"run python -m data_tools index {folder}"
        ) from error
    return folder, index, hashlib.sha256(data).hexdigest()


def size_problem(storage: Storage, entry: dict[str, Any]) -> str | None:
    """What is wrong with a shard of the shardlist: missing, or not of the size in the index; else None."""
    try:
        size = storage.size(entry["url"])
    except FileNotFoundError:
        return f"the shard is missing, but {INDEX_NAME} lists it"
    if size != entry["filesize"]:
        return f"{size} bytes, but {entry['filesize']} in {INDEX_NAME}: it changed or is cut short"
    return None


def _check_name(url: Any, file: Path) -> None:
    if is_url(url):
        check_scheme(url)
    elif ":" in url or ".." in Path(url).parts or Path(url).is_absolute():
        raise UsageError(f"{file} names the shard {url!r}: only URLs and plain names beside it are read.")


def _open_tables(folder: Path, index: dict[str, Any]) -> Tables:
    rows, size = _open_table(folder, OFFSETS_NAME), index["samples"]
    if rows.dtype != ROW or rows.shape != (size,):
        raise DataError(_misfit(folder, OFFSETS_NAME))
    if "numbers" in index:
        numbers = _open_table(folder, NUMBERS_NAME)
        if numbers.dtype != np.float32 or numbers.shape != (size, index["num_classes"]):
            raise DataError(_misfit(folder, NUMBERS_NAME))
        return Tables(rows, numbers=numbers)
    if "labels" not in index:
        return Tables(rows)
    labels = _open_table(folder, LABELS_NAME)
    if labels.dtype != np.int64 or len(labels) <= size or labels[size] != len(labels) - size - 1:
        raise DataError(_misfit(folder, LABELS_NAME))
    return Tables(rows, labels, int(index["labels"]["max"]))


def _misfit(folder: Path, name: str) -> str:
    return f"{folder / name} does not fit {INDEX_NAME}: run python -m data_tools index {folder}"


def _open_table(folder: Path, name: str) -> NDArray[Any]:
    path = folder / name
    advice = f"run python -m data_tools index {folder}"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {advice}") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): {advice}") from error
