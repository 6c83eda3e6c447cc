"""A folder of images on disk, and the links in it."""

from __future__ import annotations

import os
from pathlib import Path

from data_tools.packing.listing import Listing, Reason
from data_tools.shards.side_files import is_side_file


class FolderSource:
    """A folder on disk.

    Links to what lies inside the folder are followed; those that lead out of it only with follow_links,
    because whoever wrote the folder could otherwise have any file of this machine packed.
    """

    def __init__(self, folder: Path, follow_links: bool = False) -> None:
        self.name, self._folder, self._follow = str(folder), folder, follow_links
        self._root = folder.resolve()

    def list_into(self, listing: Listing) -> None:
        """As Source.list_into()."""
        self._walk("", (str(self._root),), listing)

    def read(self, path: str) -> bytes:
        """As Source.read()."""
        return (self._folder / path).read_bytes()

    def _walk(self, prefix: str, above: tuple[str, ...], listing: Listing, linked: bool = False) -> None:
        """above: the real paths of this folder and of those that lead to it; linked: by way of a link."""
        with os.scandir(self._folder / prefix) as found:
            for item in found:
                path = prefix + item.name
                if is_side_file(item.name):
                    listing.pass_over(Reason.SIDE, path)
                    continue
                real, link = os.path.join(above[-1], item.name), item.is_symlink()
                if link:
                    real = os.path.realpath(item.path)
                if not prefix and os.path.isdir(item.path):
                    listing.folders.add(item.name)
                if link and (reason := self._refused(real, above, linked)):
                    listing.pass_over(reason, path)
                    continue
                listing.links += link
                if item.is_dir():
                    self._walk(f"{path}/", (*above, real), listing, linked or link)
                elif item.is_file():
                    listing.add(path, item.stat().st_size)
                else:
                    listing.pass_over(Reason.SPECIAL, path)

    def _refused(self, real: str, above: tuple[str, ...], linked: bool) -> Reason | None:
        """Why a link that leads to `real` is not followed."""
        if not os.path.exists(real):
            return Reason.BROKEN_LINK
        if not self._follow and not Path(real).is_relative_to(self._root):
            return Reason.OUTSIDE_LINK
        # Links to folders in linked folders could make of few files endlessly many.
        back = linked or any(Path(folder).is_relative_to(real) for folder in above)
        return Reason.LOOP if os.path.isdir(real) and back else None
