"""Where images to be packed come from: a folder or a zip, labelled by class folders or a csv."""

from __future__ import annotations

import csv
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from data_tools.errors import DataError, UsageError
from data_tools.index import IMAGE_EXTENSIONS

_SPLITS = {"train", "val", "valid", "validation", "test"}
_MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Entry:
    """One image to be packed: its path in the source, with slashes, its size, its label."""

    path: str
    size: int
    label: int


@dataclass(frozen=True)
class Labelled:
    """The images in byte order of their paths, the class names in order of the labels."""

    entries: list[Entry]
    classes: list[str]
    ignored: list[str] = field(default_factory=list)  # other files: neither dot files nor images


class Source(Protocol):
    """Files with relative paths. `name` stands in messages."""

    name: str

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and size of every file; dot files and the litter of macOS left out."""

    def read(self, path: str) -> bytes:
        """The content of one file."""


class FolderSource:
    """A folder on disk. Links to files and to class folders are followed, others are not."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder

    def files(self) -> Iterator[tuple[str, int]]:
        yield from self._walk("", follow_links=True)

    def read(self, path: str) -> bytes:
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
    """A zip file, read member by member and never extracted.

    A folder that holds everything (as in `train/cat/1.jpg`, `train/dog/1.jpg`) is left out of the
    paths.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is not a complete zip file ({error}).") from error
        names = [name for name in self._zip.namelist() if _extension(name) and not _hidden(name)]
        first = {name.partition("/")[0] for name in names}
        deep = all(name.count("/") >= 2 for name in names)
        self._prefix = f"{first.pop()}/" if len(first) == 1 and deep else ""

    def files(self) -> Iterator[tuple[str, int]]:
        for item in self._zip.infolist():
            if not item.is_dir() and not _hidden(item.filename):
                yield item.filename.removeprefix(self._prefix), item.file_size

    def read(self, path: str) -> bytes:
        try:
            return self._zip.read(self._prefix + path)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self.name} cannot be read at {path!r}: {error}.") from error


def open_source(path: str | Path) -> Source:
    """The folder or zip file at `path`; UsageError if it is neither."""
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipSource(path)
    raise UsageError(f"{path} is neither a folder of images nor a .zip of them.")


def label_by_folder(source: Source) -> Labelled:
    """Labels from the first folder of each path (ImageFolder): class names in plain byte order."""
    images, ignored = _images(source)
    if loose := next((path for path in images if "/" not in path), None):
        raise UsageError(
            f"{source.name} holds {loose!r} outside of any class folder: put every image in the "
            "folder of its class, or give the labels with --csv FILE."
        )
    classes = sorted({path.partition("/")[0] for path in images}, key=os.fsencode)
    if set(classes) <= _SPLITS:
        raise UsageError(
            f"{source.name} holds the splits {', '.join(classes)}, not classes: pack each alone."
        )
    number = {name: label for label, name in enumerate(classes)}
    entries = [Entry(path, images[path], number[path.partition("/")[0]]) for path in images]
    return Labelled(entries, classes, ignored)


def label_by_csv(source: Source, table: str | Path) -> Labelled:
    """Labels from a csv with the columns file and label; images that it does not list are ignored.

    Labels that are all numbers are taken as they are, otherwise they are class names, numbered in
    plain byte order.
    """
    images, ignored = _images(source)
    names: dict[str, str] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise UsageError(f"{table} must have the columns file and label in its first line.")
            for row in reader:
                path, label = row["file"], (row["label"] or "").strip()
                if path not in images:
                    raise DataError(f"{table}:{reader.line_num}: {source.name} has no image {path!r}.")
                if path in names or not label:
                    what = "is listed twice" if path in names else "has no label"
                    raise DataError(f"{table}:{reader.line_num}: {path!r} {what}.")
                names[path] = label
    except FileNotFoundError:
        raise UsageError(f"{table} does not exist: give the csv with the labels.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a csv in UTF-8 ({error}).") from error
    if not names:
        raise DataError(f"{table} lists no images.")
    number, classes = _number(set(names.values()), str(table))
    entries = [Entry(path, images[path], number[names[path]]) for path in images if path in names]
    return Labelled(entries, classes, ignored + [path for path in images if path not in names])


def _number(labels: set[str], table: str) -> tuple[dict[str, int], list[str]]:
    if all(re.fullmatch("[0-9]+", label) for label in labels):
        count = max(map(int, labels)) + 1
        if count > _MAX_CLASSES:
            raise UsageError(f"{table} has a label of {count - 1}: labels count the classes from 0.")
        return {label: int(label) for label in labels}, [str(label) for label in range(count)]
    classes = sorted(labels, key=os.fsencode)
    return {name: label for label, name in enumerate(classes)}, classes


def _images(source: Source) -> tuple[dict[str, int], list[str]]:
    images, ignored = {}, []
    for path, size in sorted(source.files(), key=lambda item: os.fsencode(item[0])):
        if _extension(path) and size:
            images[path] = size
        else:
            ignored.append(path)
    if not images:
        raise DataError(f"{source.name} holds no image (jpg, jpeg, png or webp).")
    return images, ignored


def _extension(path: str) -> str | None:
    extension = path.rpartition("/")[2].rpartition(".")[2].lower()
    return extension if extension in IMAGE_EXTENSIONS else None


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))
