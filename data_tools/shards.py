"""Reading single samples out of indexed shards by their offset."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_tools.errors import DataError, UsageError
from data_tools.index import INDEX_NAME, OFFSETS_NAME, ROW, load_classes
from data_tools.tar import member_name

_OPEN_FILES = 256


class _ShardFile:
    """A file descriptor that closes when the last thread that reads from it lets go of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ShardSet:
    """The samples 0 .. len - 1 of a folder of shards. Every method may be called from any thread.

    classes: class names in the order of the labels, or None; num_classes: their number, or the
    highest label + 1; index_sha256: changes with any change of the shards or the table.
    """

    def __init__(self, folder: Path, index: dict[str, Any], index_sha256: str) -> None:
        self.folder = folder
        self.index_sha256 = index_sha256
        self.num_classes: int = index["num_classes"]
        self.classes = load_classes(folder)
        self._shards = [entry["url"] for entry in index["shardlist"]]
        self._sizes = [entry["filesize"] for entry in index["shardlist"]]
        self.table = _open_table(folder, index)
        self._file = lru_cache(maxsize=_OPEN_FILES)(lambda n: _ShardFile(folder / self._shards[n]))

    @classmethod
    def open(cls, path: str | Path) -> ShardSet:
        """Open the shards at `path`, their folder or its shardindex.json.

        Raises UsageError if there is nothing to open, DataError if a shard is missing or its size
        is not the one in the index.
        """
        folder, index, sha256 = load_index(path)
        for entry in index["shardlist"]:
            if problem := size_problem(folder, entry):
                raise DataError(f"{folder / entry['url']}: {problem}.")
        return cls(folder, index, sha256)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, i: int) -> bytes:
        """The encoded image of sample i."""
        row = self.table[i]
        file = self._file(int(row["shard"]))
        data = os.pread(file.fd, int(row["size"]), int(row["offset"]))
        if len(data) != row["size"]:
            raise DataError(f"{self.folder / self.shard_name(i)} became shorter while it was read.")
        return data

    def label(self, i: int) -> int:
        """The label of sample i, -1 for none."""
        return int(self.table["label"][i])

    def labels(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The labels of several samples, in their shape."""
        return self.table["label"][np.asarray(ids)].astype(np.int64)

    def key(self, i: int) -> str:
        """The key of sample i: its member's path up to the first dot of the base name."""
        row = self.table[i]
        shard = int(row["shard"])
        path = self.folder / self._shards[shard]
        with open(path, "rb") as file:
            name = member_name(file, str(path), self._sizes[shard], int(row["header"]))
        folder, slash, base = name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    def shard_name(self, i: int) -> str:
        """The file name of the shard that holds sample i."""
        return self._shards[int(self.table["shard"][i])]


def load_index(path: str | Path) -> tuple[Path, dict[str, Any], str]:
    """The folder, the content and the sha256 of an index; its shards are not looked at."""
    if "://" in str(path) or str(path).startswith("pipe:"):
        raise UsageError(f"{path} is not a local path: copy the shards to a disk first.")
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
        raise UsageError(f"{folder} holds no shards: make some with python -m data_tools pack SRC {folder}")
    data = file.read_bytes()
    try:
        index = json.loads(data)
        for entry in index["shardlist"]:
            _check_url(entry["url"], file)
            int(entry["nsamples"]), int(entry["filesize"])
        int(index["samples"]), int(index["num_classes"]), str(index["offsets"]["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is not an index of data_tools ({type(error).__name__}: {error}): "
            f"run python -m data_tools index {folder}"
        ) from error
    return folder, index, hashlib.sha256(data).hexdigest()


def size_problem(folder: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with the file of one entry of the shardlist, as far as its size can tell."""
    try:
        size = (folder / entry["url"]).stat().st_size
    except FileNotFoundError:
        return f"the shard is missing, but {INDEX_NAME} lists it"
    if size != entry["filesize"]:
        return f"{size} bytes, but {entry['filesize']} in {INDEX_NAME}: it changed or is cut short"
    return None


def _check_url(url: Any, file: Path) -> None:
    parts = Path(url).parts
    if ":" in url or ".." in parts or Path(url).is_absolute():
        raise UsageError(f"{file} names the shard {url!r}: only plain names beside it are read.")


def _open_table(folder: Path, index: dict[str, Any]) -> NDArray[np.void]:
    path = folder / OFFSETS_NAME
    advice = f"run python -m data_tools index {folder}"
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {advice}") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): {advice}") from error
    if table.dtype != ROW or table.shape != (index["samples"],):
        raise DataError(f"{path} does not fit {INDEX_NAME}: {advice}")
    return table
