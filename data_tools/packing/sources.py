"""The images that pack() reads: those of a folder, a zip, a tar, or of shards that are packed again."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data_tools.errors import DataError, UsageError, printable
from data_tools.shards.samples import IMAGE_EXTENSIONS
from data_tools.shards.shard_set import ShardSet
from data_tools.shards.tar import scan
from data_tools.shards.urls import is_url


class Source(Protocol):
    """Files with relative paths. name: for messages. read() may be called from any thread."""

    name: str

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and size in bytes of every file, but no hidden ones (.name and __MACOSX).

        The size is 0 for what cannot be read, such as a link inside an archive.
        """

    def read(self, path: str) -> bytes:
        """The content of one file. OSError or DataError if it cannot be read."""


class FolderSource:
    """A folder on disk. Links are followed to files and to class folders, but to no deeper folder."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder
        self._listed: set[str] = set()

    def files(self) -> Iterator[tuple[str, int]]:
        """As Source.files()."""
        for path, size in self._walk("", follow_links=True):
            self._listed.add(path)
            yield path, size

    def added(self) -> list[str]:
        """The paths of the images that have come since files() gave all of them."""
        listed = frozenset(self._listed)
        found = (path for path, _ in self._walk("", follow_links=True))
        return sorted(path for path in found if path not in listed and extension(path))

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        return (self._folder / path).read_bytes()

    def _walk(self, prefix: str, follow_links: bool) -> Iterator[tuple[str, int]]:
        with os.scandir(self._folder / prefix) as found:
            for item in found:
                if item.name.startswith("."):
                    continue
                if item.is_dir(follow_symlinks=follow_links):
                    yield from self._walk(f"{prefix}{item.name}/", follow_links=False)
                elif item.is_file():
                    yield prefix + item.name, item.stat().st_size


class ZipSource:
    """A zip file, read member by member and never extracted. DataError for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is not a complete zip file ({error}).") from error
        self._prefix = _common_folder(self._zip.namelist(), self.name)

    def files(self) -> Iterator[tuple[str, int]]:
        """As Source.files()."""
        for item in self._zip.infolist():
            if not item.is_dir() and not _hidden(item.filename):
                yield item.filename.removeprefix(self._prefix), item.file_size

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        try:
            return self._zip.read(self._prefix + path)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self.name} cannot be read at {path!r}: {error}.") from error


class TarSource:
    """A plain tar of image folders, read by offset and never extracted.

    DataError for a damaged or compressed tar; UsageError for a WebDataset shard, whose labels are in
    members of their own and not in the names of folders.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places: list[tuple[str, int, int]] = []
        with open(path, "rb") as file:
            for member in scan(file, self.name, path.stat().st_size):
                if not member.folder:
                    size = member.size if member.regular else 0
                    self._places.append((member.name.removeprefix("./"), member.offset, size))
        if label := next((name for name, _, _ in self._places if name.endswith(".cls")), None):
            raise UsageError(
                f"{path} is a WebDataset shard (it holds {label!r}): give the folder that it lies in."
            )
        self._prefix = _common_folder([name for name, _, _ in self._places], self.name)
        self._at = {name: (offset, size) for name, offset, size in self._places}

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def files(self) -> Iterator[tuple[str, int]]:
        """As Source.files()."""
        for name, _, size in self._places:
            if not _hidden(name):
                yield name.removeprefix(self._prefix), size

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        offset, size = self._at[self._prefix + path]
        return os.pread(self._fd, size, offset)


class ShardSource:
    """Samples of WebDataset shards; their paths are SHARD/KEY.EXTENSION."""

    def __init__(self, shards: ShardSet, name: str) -> None:
        self.name, self.shards = name, shards
        self._number: dict[str, int] = {}

    def files(self) -> Iterator[tuple[str, int]]:
        """As Source.files()."""
        sizes = self.shards.table["size"].tolist()
        for i, size in enumerate(sizes):
            path = f"{self.shards.shard_name(i)}/{self.shards.member(i)}"
            self._number[path] = i
            yield path, size

    def number(self, path: str) -> int:
        """The number of the sample at a path that files() gave."""
        return self._number[path]

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        return self.shards.read(self._number[path])


def open_source(path: str | Path) -> Source:
    """The folder, zip, tar or shards at `path`; UsageError if it is none of these."""
    if is_url(path):
        ShardSet.open(path)  # raises the UsageError that says how to read shards behind URLs
    path = Path(path)
    if path.suffix == ".json" or (path / "shardindex.json").is_file():
        return ShardSource(ShardSet.open(path), str(path))
    if path.is_dir():
        folder, tar = FolderSource(path), next(path.glob("*.tar"), None)
        if tar is None:
            return folder
        if image := next((name for name, _ in folder.files() if extension(name)), None):
            raise UsageError(
                f"{path} holds images ({image}) and a tar ({tar.name}), which would be packed as a shard: "
                "move one of them away."
            )
        return ShardSource(ShardSet.scan(path), str(path))
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipSource(path)
    if path.is_file() and path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(path)
    if not path.exists():
        raise UsageError(
            f"{printable(str(path))} does not exist, so it is neither a folder of images or shards nor "
            "a .zip or .tar of images: check the path."
        )
    raise UsageError(f"{path} is neither a folder of images or shards nor a .zip or .tar of images.")


def extension(path: str) -> str | None:
    """The extension of a path in lower case if it is that of an image, else None."""
    stem, _, found = path.rpartition("/")[2].rpartition(".")
    return found.lower() if stem and found.lower() in IMAGE_EXTENSIONS else None


def _common_folder(names: list[str], archive: str) -> str:
    """`train/` if all images are inside it, as in train/cat/1.jpg and train/dog/1.jpg; else "".

    DataError for names that lead out of the archive.
    """
    if outside := next((n for n in names if n.startswith("/") or ".." in n.split("/")), None):
        raise DataError(f"{archive} holds {outside!r}, which is not a path inside it: it is not packed.")
    names = [name for name in names if extension(name) and not _hidden(name)]
    first = {name.partition("/")[0] for name in names}
    deep = all(name.count("/") >= 2 for name in names)
    return f"{first.pop()}/" if len(first) == 1 and deep else ""


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
