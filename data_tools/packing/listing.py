"""What a source holds: its images, and what is passed over and why. Nothing is left out unnamed."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile

from data_tools.errors import DataError
from data_tools.images.formats import CONVERTED_EXTENSIONS, READ_AS, UNREAD_EXTENSIONS


class Reason(Enum):
    """Why files are passed over. The text stands before their number."""

    SIDE = "hidden, or left by a file manager, a NAS or a system"
    CONVERTIBLE = "images of formats that --convert takes"
    UNREAD = "images of formats that pack does not read"
    COMPANION = "second images of a sample, such as masks"
    NO_IMAGE = "no images by their names"
    EMPTY = "empty"
    SPECIAL = "neither files nor folders"
    BROKEN_LINK = "links that lead nowhere"
    OUTSIDE_LINK = "links that lead out of the source (--follow-links takes them)"
    LOOP = "links to folders that lead back, or lie in a linked folder"
    ARCHIVED_LINK = "links inside an archive"
    UNCONVERTED = "images that could not be converted"


_KINDS_SHOWN = (Reason.CONVERTIBLE, Reason.UNREAD, Reason.NO_IMAGE)  # those whose extensions are counted
_MANY = 4  # extensions that are shown
_ARCHIVES = frozenset(("tar", "zip", "gz", "tgz", "7z", "rar", "bz2", "xz"))
_COMPANION_WORDS = (
    "mask|seg|segmentation|labels?|gt|groundtruth|depth|edges?|alpha|matte|trimap|normals|instances?|"
    "semantic|panoptic|heatmap|annotation|annotated|overlay"
)
_COMPANION = re.compile(rf"(.+)[ _-](?:{_COMPANION_WORDS})(?:[ _-]?[0-9]+)?", re.IGNORECASE)


@dataclass
class Listing:
    """The files of one source.

    name: of the source. convert: images of other formats count. images: size in bytes by path, with
    slashes, in byte order once ordered() is called. passed: paths by the reason why they are passed over.
    folders: the first part of every path that has several, and folders without files. prefix: the folders
    that all paths of an archive begin with; they are left out of the paths. links: how many links were
    followed. notes: sentences on how the source was understood.
    """

    name: str
    convert: bool = False
    images: dict[str, int] = field(default_factory=dict)
    passed: dict[Reason, list[str]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    prefix: str = ""
    links: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, path: str, size: int) -> None:
        """Sort in a regular file of `size` bytes. DataError for an image that is there already."""
        first, slash, _ = path.partition("/")
        if slash:
            self.folders.add(first)
        kind = extension(path)
        if kind in READ_AS or (self.convert and kind in CONVERTED_EXTENSIONS):
            if path in self.images:
                raise DataError(f"{self.name} holds '{path}' twice: only one of them can be meant.")
            if size:
                self.images[path] = size
            else:
                self.pass_over(Reason.EMPTY, path)
        elif kind in CONVERTED_EXTENSIONS:
            self.pass_over(Reason.CONVERTIBLE, path)
        else:
            self.pass_over(Reason.UNREAD if kind in UNREAD_EXTENSIONS else Reason.NO_IMAGE, path)

    def pass_over(self, reason: Reason, path: str) -> None:
        """Count a file, or a folder with all that is in it, as left out."""
        self.passed.setdefault(reason, []).append(path)

    def ordered(self) -> Listing:
        """Order images and paths by their bytes. DataError without images."""
        self.images = dict(sorted(self.images.items(), key=lambda item: os.fsencode(item[0])))
        for paths in self.passed.values():
            paths.sort(key=os.fsencode)
        if not self.images:
            raise DataError(f"{self.name} holds no image (jpg, jpeg, png or webp){self._instead()}.")
        if self.links:
            self.notes.append(f"links to files and folders that were followed: {self.links}")
        return self

    def pass_over_companions(self) -> None:
        """Where folders are the classes: masks and the like are no images of a class."""
        for path in _companions(self.images):
            del self.images[path]
            self.pass_over(Reason.COMPANION, path)
        if pairs := _pairs(self.images):
            self.notes.append(
                f"images with the name of another one but for the extension, both taken: {len(pairs)}, "
                f"first '{pairs[0]}'"
            )

    def why_not(self, path: str) -> str:
        """Why a path is none of the images; "" if the source does not hold it."""
        return next((reason.value for reason, paths in self.passed.items() if path in paths), "")

    def _instead(self) -> str:
        """What an error about a source without images adds."""
        if not self.passed:
            return ""
        others = self.passed.get(Reason.NO_IMAGE, [])
        archives = [path for path in others if extension(path) in _ARCHIVES]
        advice = ": unpack the archives" if archives else ""
        if tar := next((path for path in archives if "/" in path and extension(path) == "tar"), None):
            advice += f", or if they are shards pack their folder, {self.name}/{tar.rpartition('/')[0]}"
        return f"; passed over: {'; '.join(rows(self.passed))}{advice}"


def extension(path: str) -> str:
    """The extension of a path in lower case, without the dot; "" if it has none."""
    stem, _, found = path.rpartition("/")[2].rpartition(".")
    return found.lower() if stem else ""


def common_start(paths: list[list[str]]) -> list[str]:
    """The folders that all of these paths begin with; a path is a list of folders."""
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return [level[0] for level in levels]


def rows(passed: dict[Reason, list[str]]) -> list[str]:
    """For each reason: how many files, their extensions where these tell something, and the first."""
    found = []
    for reason in Reason:
        if paths := passed.get(reason):
            counts = Counter(f".{extension(path)}" for path in paths if extension(path)).most_common()
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts[:_MANY])
            kinds += ", ..." if len(counts) > _MANY else ""
            shown = f" ({kinds})" if kinds and reason in _KINDS_SHOWN else ""
            found.append(f"{reason.value}: {len(paths)}{shown}, first '{paths[0]}'")
    return found


def _companions(images: dict[str, int]) -> list[str]:
    """Images that belong to another one: x.seg.png, x.input.jpg and x_mask.png beside x.jpg.

    As webdataset groups them, all up to the first dot of a base name is the sample. Numbers behind it
    (x.1.jpg) make an image of their own.
    """
    plain = {path.rpartition(".")[0] for path in images}
    found = []
    for path in images:
        folder, slash, base = path.rpartition("/")
        key, _, rest = base.partition(".")
        middle = rest.rpartition(".")[0]
        own = all(part.isdigit() for part in middle.split("."))
        match = _COMPANION.fullmatch(base.rpartition(".")[0])
        if (middle and not own and folder + slash + key in plain) or (
            match and folder + slash + match[1] in plain
        ):
            found.append(path)
    return found


def _pairs(images: dict[str, int]) -> list[str]:
    """Images for which there is another one before them with the same path but for the extension."""
    seen: set[str] = set()
    found = []
    for path in images:
        stem = path.rpartition(".")[0]
        if stem in seen:
            found.append(path)
        seen.add(stem)
    return found
