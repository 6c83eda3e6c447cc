"""Reads the images that are packed, writes some of them anew, and keeps account of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_tools.errors import DataError
from data_tools.images.decode import DecodeError
from data_tools.images.formats import CONVERTED_NAMES, READ_AS, no_image, other_format
from data_tools.packing.labelling import Entry
from data_tools.packing.listing import extension
from data_tools.packing.recode import Recode, Written, file_extension
from data_tools.packing.shard_writer import PackedImage, metadata
from data_tools.packing.sources import ShardSource, Source


@dataclass
class Prepare:
    """Makes of an entry what is written for it. Any thread may call it.

    unreadable: images that could not be written anew and are packed as they are, and why; unconverted:
    those of other formats, which are left out then. converted: the formats of those that were converted.
    misnamed: the formats of images that are named .jpg or the like, and which training cannot read.
    several: images of which only the first picture was taken. recoloured: paths of those now in sRGB.
    prepared: paths of all images that it was called for; an earlier run may have packed others.
    """

    source: Source | ShardSource
    recode: Recode
    max_pixels: int
    unreadable: list[str] = field(default_factory=list)
    unconverted: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    misnamed: list[tuple[str, str]] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    recoloured: list[str] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)  # paths of images in shards that training cannot read

    def __call__(self, entry: Entry) -> PackedImage | None:
        """The image of an entry; None if it is of another format and cannot be converted.

        DataError if the file is no longer of the size that it had.
        """
        self.prepared.append(entry.path)
        data = self.source.read(entry.path)
        if len(data) != entry.size:
            raise DataError(f"'{entry.path}' in {self.source.name} changed while it was packed: start again.")
        named = READ_AS.get(extension(entry.path))
        try:
            written = self.recode(data, self.max_pixels) if self.recode else Written(data)
            found = written.extension or named or file_extension(data)
        except DecodeError as error:
            if named is None:
                self.unconverted.append(f"{entry.path}: {error}")
                return None
            if not other_format(data) and not no_image(data):
                self.unreadable.append(f"{entry.path}: {error}")
            self.unusable.add(entry.path)
            written, found = Written(data), named
        self._count(entry.path, written)
        return PackedImage(written.data, found, metadata(entry))

    def _count(self, path: str, written: Written) -> None:
        if written.converted:
            self.converted.append(written.converted)
            if written.pictures > 1:
                self.several.append(path)
        elif other := other_format(written.data) or no_image(written.data):
            self.misnamed.append((path, other))
            self.unusable.add(path)
        if written.recoloured:
            self.recoloured.append(path)

    def notes(self) -> list[str]:
        """What happened, a sentence each."""
        found = []
        if self.recoloured:
            found.append(f"images converted to sRGB from another colour profile: {_many(self.recoloured)}")
        if self.converted:
            found.append(f"images converted from other formats: {_counted(self.converted)}")
        if self.several:
            found.append(f"images of which only the first picture was taken: {_many(self.several)}")
        if self.misnamed:
            paths, formats = zip(*self.misnamed, strict=True)
            advice = "--convert writes them anew"
            if not CONVERTED_NAMES.issuperset(formats) or self.recode.convert:
                advice = "fetch them again, or convert them with another program"
            found.append(
                f"warning: images that training cannot read, of other content than their names say: "
                f"{_many(paths)} ({_counted(formats)}): {advice}"
            )
        if self.unreadable:
            found.append(f"unreadable images, packed as they are: {_many(self.unreadable)}")
        return found


def _many(paths: Sequence[str]) -> str:
    return f"{len(paths)}, first '{min(paths)}'"


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))
