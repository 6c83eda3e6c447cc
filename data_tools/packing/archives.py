"""Archives of images: a zip, a tar, and tars that hold the images of one class each."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from data_tools.errors import DataError
from data_tools.images.formats import CONVERTED_EXTENSIONS, READ_AS
from data_tools.packing.listing import Listing, Reason, common_start, extension
from data_tools.shards.samples import CLS, JSON, split_name
from data_tools.shards.side_files import side_part
from data_tools.shards.tar import Member, scan

_WORDNET_ID = re.compile("n[0-9]{8}")  # what ImageNet's classes are called
_DOS = 0  # what a zip names as its system if Windows' own functions wrote it
_WRITTEN_BY_UNIX = 3
_T = TypeVar("_T")


class ZipSource:
    """A zip file, read member by member and never extracted. DataError for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is not a complete zip file ({error}).") from error
        members = self._zip.infolist()
        slashes = any("/" in item.filename for item in members if not side_part(item.filename))
        self._windows = False
        self._members: list[tuple[str, zipfile.ZipInfo]] = []
        for item in members:
            name = item.filename
            # The format knows no other separator than a slash (APPNOTE 4.4.17.1), but some programs do.
            if "\\" in name and (item.create_system == _DOS or not slashes):
                name, self._windows = name.replace("\\", "/"), True
            self._members.append((name, item))
        names = [name for name, _ in self._members]
        _refuse_outside(names, self.name)
        self._prefix = _common_folders(names)
        self._at = {name.removeprefix(self._prefix): item for name, item in self._members}

    def list_into(self, listing: Listing) -> None:
        """As Source.list_into()."""
        if self._windows:
            listing.notes.append("the backslashes in its names were read as slashes, as Windows means them")
        _say_prefix(listing, self._prefix)
        for name, item in _visible(self._members, listing, self._prefix):
            if name.endswith("/"):
                _add_folder(listing, name)
            elif stat.S_ISLNK(item.external_attr >> 16) and item.create_system == _WRITTEN_BY_UNIX:
                listing.pass_over(Reason.ARCHIVED_LINK, name)
            else:
                listing.add(name, item.file_size)

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        try:
            return self._zip.read(self._at[path])
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{self.name} cannot be read at '{path}': {error}.") from error


class TarSource:
    """Plain tars of images, read by offset and never extracted.

    classes: the class of all images of a tar, where each tar is a class; else the folders in the one tar
    are the classes. A tar of such tars, as ImageNet's ILSVRC2012_img_train.tar, is read like them.
    DataError for a damaged or compressed tar. A WebDataset shard is none of these: see is_shard().
    """

    def __init__(self, name: str, tars: list[Path], classes: bool = False) -> None:
        self.name, self._classes = name, classes
        self._members: list[tuple[str, tuple[Path, Member]]] = []
        for path in tars:
            with open(path, "rb") as file:
                members = list(scan(file, str(path), path.stat().st_size))
                inner = [member for member in members if extension(member.name) == "tar" and member.regular]
                if len(tars) == 1 and _hold_classes(members, inner):
                    self._classes = True
                    for member in inner:
                        window = _Window(file, member)
                        for found in scan(window, f"{path}:{member.name}", member.size):
                            self._add(path, Path(member.name).stem, window.moved(found))
                else:
                    for member in members:
                        self._add(path, path.stem if classes else "", member)
        names = [name for name, _ in self._members]
        _refuse_outside(names, self.name)
        self._prefix = "" if self._classes else _common_folders(names)
        self._at = {name.removeprefix(self._prefix): place for name, place in self._members}

    def list_into(self, listing: Listing) -> None:
        """As Source.list_into()."""
        if self._classes:
            listing.notes.append(
                "each tar was taken for a class of the tar's name: no image in them has a label of its own"
            )
        _say_prefix(listing, self._prefix)
        for name, (_, member) in _visible(self._members, listing, self._prefix):
            if member.folder:
                _add_folder(listing, name)
            elif member.regular:
                listing.add(name, member.size)
            else:
                listing.pass_over(Reason.ARCHIVED_LINK, name)

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        tar, member = self._at[path]
        with open(tar, "rb") as file:
            return os.pread(file.fileno(), member.size, member.offset)

    def _add(self, tar: Path, name: str, member: Member) -> None:
        inside = member.name.removeprefix("./")
        if name and inside and not member.folder:
            inside = f"{name}/{inside}"
        elif name:
            return
        if inside not in ("", "."):
            self._members.append((inside, (tar, member)))


class _Window:
    """A tar inside a tar as a file of its own."""

    def __init__(self, file: BinaryIO, outer: Member) -> None:
        self._file, self._start, self._size = file, outer.offset, outer.size

    def seek(self, position: int, /) -> object:
        return self._file.seek(self._start + position)

    def read(self, length: int, /) -> bytes:
        left = self._start + self._size - self._file.tell()
        return self._file.read(min(length, max(left, 0)))

    def moved(self, member: Member) -> Member:
        """A member of the inner tar, at its place in the outer one."""
        header, offset = member.header + self._start, member.offset + self._start
        return replace(member, header=header, offset=offset)


def is_shard(path: Path) -> bool:
    """Whether a tar is a WebDataset shard: KEY.cls is beside an image, or KEY.json and no folder around."""
    with open(path, "rb") as file:
        names = [split_name(member.name) for member in scan(file, str(path), path.stat().st_size)]
    images = {key for key, kind in names if _is_image(f"x.{kind}")}
    return any(kind == CLS or (kind == JSON and "/" not in key) for key, kind in names if key in images)


def are_classes(tars: list[Path]) -> bool:
    """Whether each of these tars holds the images of one class, named as the tar, and no labels.

    Their names are all WordNet ids, as ImageNet's; or there are several and none ends in a number, as the
    names of shards do. DataError for a damaged tar.
    """
    return _are_class_names([path.stem for path in tars]) and not any(_has_labels(path) for path in tars)


def _are_class_names(stems: list[str]) -> bool:
    ids = all(_WORDNET_ID.fullmatch(stem) for stem in stems)
    return ids or (len(stems) > 1 and not any(stem[-1:].isdigit() for stem in stems))


def _hold_classes(members: list[Member], tars: list[Member]) -> bool:
    """Whether a tar with these members holds tars of one class each."""
    stems = [Path(member.name).stem for member in tars]
    return bool(tars) and _are_class_names(stems) and not any(_is_image(member.name) for member in members)


def _has_labels(path: Path) -> bool:
    """Whether a tar holds anything beside images that could be a label, or no image."""
    images = 0
    with open(path, "rb") as file:
        for member in scan(file, str(path), path.stat().st_size):
            if extension(member.name) in ("cls", "json", "txt", "tar"):
                return True
            images += _is_image(member.name)
    return not images


def _is_image(name: str) -> bool:
    return extension(name) in READ_AS or extension(name) in CONVERTED_EXTENSIONS


def _visible(members: list[tuple[str, _T]], listing: Listing, prefix: str) -> Iterator[tuple[str, _T]]:
    """The members that are not hidden, below `prefix`; a hidden folder is counted once."""
    hidden: set[str] = set()
    for name, member in members:
        name = name.removeprefix(prefix)
        side = side_part(name.removesuffix("/"))
        if side is None:
            yield name, member
        elif side not in hidden:
            hidden.add(side)
            listing.pass_over(Reason.SIDE, side)


def _add_folder(listing: Listing, name: str) -> None:
    if first := name.partition("/")[0]:
        listing.folders.add(first)


def _say_prefix(listing: Listing, prefix: str) -> None:
    listing.prefix = prefix
    if prefix:
        listing.notes.append(f"paths are those below '{prefix}', in which all images lie")


def _refuse_outside(names: Iterable[str], archive: str) -> None:
    """DataError for names that lead out of the archive."""
    for name in names:
        if re.match(r"[/\\]|[A-Za-z]:[/\\]", name) or ".." in re.split(r"[/\\]", name):
            raise DataError(f"{archive} holds '{name}', which is not a path inside it: it is not packed.")


def _common_folders(names: list[str]) -> str:
    """`data/train/` if all images are inside it: data/train/cat/1.jpg, data/train/dog/1.jpg; else "".

    If all images are in one folder with others in between, only the first is common: x/cat/1.jpg is a cat.
    """
    folders = [name.split("/")[:-1] for name in names if _is_image(name) and not side_part(name)]
    if not folders or any(len(parts) < 2 for parts in folders):
        return ""
    common = common_start(folders)
    if any(len(parts) == len(common) for parts in folders):
        common = common[:1]
    return "".join(f"{part}/" for part in common)
