"""Which image of a source a cell of a csv names: other separators, case, no extension, absolute paths."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from data_tools.errors import DataError
from data_tools.shards.class_names import plain_name, quoted_names


class ImageNames:
    """Finds images by what a csv calls them. An exact path inside the source always comes first.

    paths: of the images; source: the folder, zip or tar that holds them; table: the csv.
    """

    def __init__(self, paths: Iterable[str], source: Path, table: Path) -> None:
        self._paths = set(paths)
        self._roots = [os.path.abspath(source), os.path.realpath(source)] if source.is_dir() else []
        self._folder = os.path.dirname(os.path.abspath(table))
        self.start = ""  # what all names begin with and no path does

    def leave_out_start(self, name: str) -> None:
        """If only the end of this absolute path is that of an image, take it that all names begin so."""
        parts = name.replace("\\", "/").split("/")
        if (not parts[0] or parts[0].endswith(":")) and not self.names_one(name):
            ends = ((n, "/".join(parts[n:])) for n in range(1, len(parts)))
            cut = next((n for n, end in ends if end in self._paths), 0)
            self.start = "".join(f"{part}/" for part in parts[:cut])

    def find(self, name: str) -> str | None:
        """The path of the image that is called `name`, or None. DataError if two images could be meant."""
        if self.start and name.replace("\\", "/").startswith(self.start):
            name = name[len(self.start) :]
        if name in self._paths:
            return name
        candidates = self._candidates(name)
        if exact := next((path for path in candidates if path in self._paths), None):
            return exact
        for known in (self._by_folded, self._by_stem, self._by_base):
            for path in map(_folded, candidates):
                key = posixpath.basename(path) if known is self._by_base else path
                found = [one for one in known.get(key, []) if _ends(one, path)]
                if len(found) > 1:
                    which = quoted_names(sorted(found), " or ")
                    raise DataError(f"'{name}' could be {which}: write which, or pack its folder alone.")
                if found:
                    return found[0]
        return None

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        return _grouped((_folded(path), path) for path in self._paths)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((_folded(posixpath.splitext(path)[0]), path) for path in self._paths)

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        return _grouped(
            (base, path)
            for path in self._paths
            for name in [_folded(posixpath.basename(path))]
            for base in {name, posixpath.splitext(name)[0]}
        )

    def names_one(self, name: str) -> bool:
        """Whether `name` names an image, or several."""
        try:
            return self.find(name) is not None
        except DataError:
            return True

    def _candidates(self, name: str) -> list[str]:
        """The paths inside the source that `name` may stand for."""
        found = []
        for written in (name, name.replace("\\", "/")):
            if not written:
                continue
            inside = posixpath.normpath(written)
            beside = os.path.normpath(os.path.join(self._folder, written))
            found += [inside, inside.lstrip("/")]
            for root in self._roots:
                found += [path[len(root) + 1 :] for path in (inside, beside) if path.startswith(f"{root}/")]
        return list(dict.fromkeys(found))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, path in pairs:
        found.setdefault(key, []).append(path)
    return found


def _ends(path: str, name: str) -> bool:
    """Whether the last parts of `path`, perhaps without the extension, are `name`."""
    path = _folded(path)
    return f"/{path}".endswith(f"/{name}") or f"/{posixpath.splitext(path)[0]}".endswith(f"/{name}")


def _folded(path: str) -> str:
    return plain_name(path).casefold()
