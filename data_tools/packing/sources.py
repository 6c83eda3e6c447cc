"""The images that pack() reads: those of a folder, a zip, a tar, or of shards that are packed again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data_tools.errors import UsageError
from data_tools.packing.archives import TarSource, ZipSource, are_classes, is_shard
from data_tools.packing.folder_source import FolderSource
from data_tools.packing.listing import Listing
from data_tools.shards.index import rules_without_names
from data_tools.shards.index_file import NoIndex
from data_tools.shards.labels import NO_RULES, LabelRules
from data_tools.shards.names import local_shards, relative, shards_in, tars_in
from data_tools.shards.shard_set import ShardSet
from data_tools.shards.urls import is_url


class Source(Protocol):
    """Files with relative paths. name: for messages. read() may be called from any thread."""

    name: str

    def list_into(self, listing: Listing) -> None:
        """Add every file to `listing`, or pass it over there with a reason."""

    def read(self, path: str) -> bytes:
        """The content of one file. OSError or DataError if it cannot be read."""


class ShardSource:
    """Samples of WebDataset shards; their paths are SHARD/KEY.EXTENSION."""

    def __init__(self, shards: ShardSet, name: str) -> None:
        self.name, self.shards = name, shards
        self._number: dict[str, int] = {}

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and size in bytes of every image."""
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


def open_source(
    path: str | Path, follow_links: bool = False, rules: LabelRules = NO_RULES
) -> Source | ShardSource:
    """The folder, zip, tar or shards at `path`; UsageError if it is none of these.

    follow_links: links that lead out of a folder are followed too. rules: for the labels of shards without
    an index.
    """
    if is_url(path):
        ShardSet.open(path)  # raises the UsageError that says how to read shards behind URLs
    given, path = str(path), Path(path)
    if path.suffix == ".json" or (path / "shardindex.json").is_file():
        return ShardSource(ShardSet.open(path), given)
    if (not path.exists() or (path.suffix == ".tar" and is_shard(path))) and (paths := local_shards(given)):
        try:
            return ShardSource(ShardSet.open(given), given)
        except NoIndex:
            at, names = relative(paths)
            return ShardSource(ShardSet.scan(at, rules_without_names(at, rules), names), given)
    if path.is_dir():
        folder = FolderSource(path, follow_links)
        tar = next(iter(tars_in(path)), None)
        if tar is None:
            return folder
        folder.list_into(listing := Listing(str(path)))
        if image := next(iter(listing.images), None):
            raise UsageError(
                f"{path} holds images ({image}) and a tar ({tar}), which would be packed as a shard: "
                "move one of them away."
            )
        tars = [path / name for name in shards_in(path)]
        if are_classes(tars):
            return TarSource(str(path), tars, classes=True)
        return ShardSource(ShardSet.scan(path, rules_without_names(path, rules)), str(path))
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipSource(path)
    if path.is_file() and path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(str(path), [path])
    if not path.exists():
        raise UsageError(
            f"{path} does not exist, so it is neither a folder of images or shards nor "
            "a .zip or .tar of images: check the path."
        )
    raise UsageError(f"{path} is neither a folder of images or shards nor a .zip or .tar of images.")


def list_images(source: Source | ShardSource, convert: bool = False) -> Listing:
    """All that a source holds, nothing for shards; convert: images of other formats count.

    DataError for a source without images.
    """
    listing = Listing(source.name, convert)
    if isinstance(source, ShardSource):
        listing.notes += source.shards.notes
        return listing
    source.list_into(listing)
    return listing.ordered()


def images_added(source: Source | ShardSource, listing: Listing) -> list[str]:
    """The images that have come into a folder since `listing` was made of it."""
    if not isinstance(source, FolderSource):
        return []
    source.list_into(now := Listing(source.name, listing.convert))
    known = listing.images.keys() | {path for paths in listing.passed.values() for path in paths}
    return sorted(now.images.keys() - known, key=os.fsencode)
