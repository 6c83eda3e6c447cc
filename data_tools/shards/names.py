"""Which local shards a user means: patterns with braces and wildcards, lists, single files."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from data_tools.errors import DataError, UsageError, shown
from data_tools.shards.remote import braces
from data_tools.shards.side_files import is_side_file
from data_tools.shards.urls import is_url

# A folder of shards, its index file, a pattern of shards such as train-{0000..0127}.tar or train-*.tar, or a
# list of shards and patterns.
Shards: TypeAlias = str | Path | Sequence[str | Path]
_SEVERAL = "::"  # between patterns, as in webdataset
_SHOWN = 3
_COMPRESSED = re.compile(r".*\.(tar\.[a-z0-9]+|tgz|tbz2?|txz)", re.IGNORECASE)


def local_shards(shards: Shards) -> list[Path] | None:
    """The shards on a disk that a pattern, a list or the path of one shard names, sorted.

    None for everything else: a folder, an index file, URLs. UsageError, naming what is missing, for a pattern
    without files and for shards that do not exist, and for a shard that is named twice. OSError.
    """
    one = isinstance(shards, str | Path)
    patterns = [str(shards)] if isinstance(shards, str | Path) else [str(item) for item in shards]
    if not patterns:
        raise UsageError("An empty list names no shards: give a folder, or the names of shards.")
    if all(map(is_url, patterns)):
        return None
    for pattern in patterns:
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            os.stat(pattern)  # OSError where the disk fails; exists() would say that there is nothing
    if one and not os.path.exists(patterns[0]) and _SEVERAL in patterns[0]:
        patterns, one = patterns[0].split(_SEVERAL), False
    if len(patterns) == 1:
        pattern = patterns[0]
        if os.path.isdir(pattern) or pattern.endswith(".json"):
            return None
        if one and not os.path.exists(pattern) and not _is_pattern(pattern) and not pattern.endswith(".tar"):
            return None
    found = [path for pattern in patterns for path in _files(pattern)]
    places: set[str] = set()
    for path in found:
        if (place := os.path.abspath(path)) in places:
            raise UsageError(f"{path} is given twice: name every shard once.")
        places.add(place)
    return sorted(found)


def shards_in(folder: Path) -> list[str]:
    """The *.tar files of a folder in order of their names.

    UsageError if there are none, DataError for a compressed one.
    """
    if not folder.exists():
        raise UsageError(f"{folder} does not exist: give the folder that holds the *.tar shards.")
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is neither a folder nor a .tar: give the folder of the *.tar shards, or their names."
        )
    names = _visible(path for path in folder.iterdir() if path.is_file())
    if compressed := next((name for name in names if _COMPRESSED.fullmatch(name)), None):
        raise _compressed(folder / compressed)
    if shards := [name for name in names if name.endswith(".tar")]:
        return openable(folder, shards)
    inside = sorted({str(path.parent) for path in folder.glob("*/*.tar")})[:_SHOWN]
    advice = (
        f"did you mean {' or '.join(inside)}?"
        if inside
        else "make some with python -m data_tools pack SRC DST."
    )
    raise UsageError(f"{folder} holds no *.tar shards: {advice}")


def tars_in(folder: Path) -> list[str]:
    """The names of the *.tar files of a folder, sorted, without those that file managers hide."""
    return _visible(folder.glob("*.tar"))


def relative(paths: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that holds all of these shards, at any depth, and their names inside it."""
    folder = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
    names = [os.path.relpath(os.path.abspath(path), folder) for path in paths]
    shown_as = Path(os.path.relpath(folder))
    folder = folder if paths[0].is_absolute() else shown_as
    return folder, openable(folder, names)


def openable(folder: Path, names: list[str]) -> list[str]:
    """The names, none of which an index could take for a URL or a command; DataError for one of these."""
    if odd := next((name for name in names if is_url(name)), None):
        raise DataError(f"{folder / odd} has a name that readers of shards take for a command: rename it.")
    return names


def index_stem(folder: Path, names: Sequence[str]) -> str:
    """The name, without its ending, of the index of some shards of a folder.

    It is `shardindex` for all of the folder's shards, and otherwise holds what their names have in common and
    a hash of all names, so that training and validation shards in one folder have an index each.
    """
    if list(names) == tars_in(folder):
        return "shardindex"
    common = os.path.basename(names[0]).removesuffix(".tar")
    while not all(os.path.basename(name).startswith(common) for name in names):
        common = common[:-1]
    word = re.sub(r"[^A-Za-z0-9_-]", "", common).rstrip("-_0123456789")[:40]
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return "-".join(["shardindex", *filter(None, [word]), digest])


def folders_of(shards: Shards) -> list[Path]:
    """The folders on a disk in which `shards` lie; nothing is opened, and nothing needs to exist."""
    patterns = [str(shards)] if isinstance(shards, str | Path) else [str(item) for item in shards]
    folders = []
    for pattern in patterns:
        if is_url(pattern):
            continue
        path = Path(pattern)
        if not path.exists() and (place := re.search(r"[{*?\[]", pattern)):
            path = Path(os.path.dirname(pattern[: place.start()]) or ".")
        folders.append(path.parent if path.is_file() or path.suffix in (".tar", ".json") else path)
    return folders


def written(shards: Shards) -> str:
    """The shards as they stand on a command line, for messages."""
    if isinstance(shards, str | Path):
        return shown(str(shards)) if is_url(shards) else _quoted(str(shards))
    return " ".join(written(item) for item in shards)


def _quoted(text: str) -> str:
    return f"'{text}'" if _is_pattern(text) or " " in text else text


def _files(pattern: str) -> list[Path]:
    """The files of one pattern, or the file of that name."""
    if is_url(pattern):
        raise UsageError(
            f"{shown(pattern)} is a URL among local shards: index URLs by themselves, with --out DIR."
        )
    if os.path.isdir(pattern):
        raise UsageError(
            f"{pattern} is a folder: a list names shards; several folders are a mixture, "
            "data.train=[{shards: FOLDER}, {shards: FOLDER}]."
        )
    names = [pattern] if os.path.exists(pattern) else braces(pattern)
    found = {name: _matches(name) for name in names}
    if absent := [name for name in names if not found[name]]:
        raise _missing(pattern, absent, len(names))
    files = [name for name in names for name in found[name]]
    for name in files:
        if _COMPRESSED.fullmatch(name):
            raise _compressed(Path(name))
        if not name.endswith(".tar"):
            raise UsageError(
                f"{name} is not a .tar, so it is no shard: end patterns in .tar, or give the "
                "folder of the shards."
            )
    return [Path(name) for name in files]


def _visible(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths if not is_side_file(path.name))


def _matches(name: str) -> list[str]:
    if os.path.exists(name):
        return [name]
    return sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))


def _missing(pattern: str, absent: list[str], count: int) -> UsageError:
    folder = os.path.dirname(absent[0]) or "."
    if not glob.has_magic(folder) and not os.path.isdir(folder):
        return UsageError(f"{folder} does not exist: {pattern} names shards in it.")
    if count == 1:
        what = "matches no file" if glob.has_magic(pattern) else "does not exist"
        return UsageError(f"{pattern} {what}: check the name and the folder.")
    first = ", ".join(absent[:_SHOWN])
    return UsageError(f"{len(absent)} of the {count} names of {pattern} do not exist, the first: {first}.")


def _compressed(path: Path) -> DataError:
    return DataError(
        f"{path} is compressed, so no sample can be read from its middle: "
        "unpack it to a plain .tar, or move it away."
    )


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) or "{" in text
