"""Holding an index against the shards as they are now: were they written anew, cut, removed or added to?"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.shards.index import CLASSES_NAME, INDEX_NAME, NAMES_SHA256, load_classes, sha256_of_names
from data_tools.shards.index_file import Index
from data_tools.shards.names import tars_in
from data_tools.shards.storage import Expected, Storage, version_of
from data_tools.shards.urls import is_url

_NEVER = version_of(0)  # a version that no file has, so that its sha256 is compared
_SHOWN = 3
_LONG = 4 << 30  # bytes: more take so long to compare that one must be told
log = logging.getLogger(__name__)


def storage_of(index: Index) -> Storage:
    """A storage that refuses whatever is not what `index` was made of, as soon as it is read."""
    return Storage(index.folder, _expected(index.file, index.shardlist))


def check_local(index: Index, storage: Storage) -> list[str]:
    """The local shards whose content was compared, because their times are not those in the index.

    DataError for a local shard that is missing, or has another content than when it was indexed.
    The size and the time of each are compared with the index; where the time differs, the sha256. If all is
    as it was, the times are noted in the index, so that this is done once. An index of version 0.1, and one
    that pack wrote, has no times: then a shard that is newer than the index is one whose time differs.
    """
    suspects = _suspects(index, storage)
    if not suspects:
        return []
    with _alone(index.file) as writable:  # one process compares; those that waited find the times noted
        content = json.loads(index.file.read_bytes())
        storage.expect(_expected(index.file, content["shardlist"]))
        suspects = _suspects(index, storage)
        if not suspects:
            return []
        sizes = {entry["url"]: int(entry["filesize"]) for entry in content["shardlist"]}
        total = sum(sizes.get(name, 0) for name in suspects)
        if total > _LONG:
            log.warning(
                "%d shards of %s have other times than when they were indexed: comparing %.0f GB",
                *(len(suspects), str(index.folder), total / 1e9),
            )
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "shard-hash") as pool:
            list(pool.map(storage.size, suspects))  # raises for one that is not what was indexed
        if writable:
            _note_times(index.file, content, suspects, storage)
        return suspects


def added_shards(index: Index) -> list[str]:
    """The *.tar files of the index's folder that it does not list; none if it is of some shards only."""
    if index.file.name != INDEX_NAME or index.part:
        return []
    listed = {entry["url"] for entry in index.shardlist}
    if all(map(is_url, listed)):
        return []
    return [name for name in tars_in(index.folder) if name not in listed]


def note_of_added(index: Index) -> str | None:
    """A sentence about added_shards(), or None if there are none."""
    if not (added := added_shards(index)):
        return None
    names = ", ".join(added[:_SHOWN]) + (", ..." if len(added) > _SHOWN else "")
    return (
        f"{index.folder} holds {len(added)} shards that its index does not list, so they are "
        f"not read ({names}): python -m data_tools index adds them"
    )


def note_of_compared(index: Index, compared: Sequence[str]) -> str | None:
    """A sentence about what check_local() returned, or None if that is nothing."""
    if not compared:
        return None
    return (
        f"{len(compared)} shards in {index.folder} have other times than when they were "
        "indexed, and the same content"
    )


def note_of_classes(index: Index) -> str | None:
    """A sentence about a classes.json that has other names than when the index was made, or None."""
    names = load_classes(index.folder)
    wanted = index.content.get(NAMES_SHA256)
    if wanted is None or (names is not None and sha256_of_names(names) == wanted):
        return None
    return (
        f"{index.folder / CLASSES_NAME} {'is gone' if names is None else 'has changed'} since "
        f"{index.file.name} was made, so that labels may mean other classes: put the old file back, or index "
        "the shards again if it is right"
    )


def shard_problem(storage: Storage, entry: dict[str, Any]) -> str | None:
    """What is wrong with a shard of the shardlist: missing, or not of the size in the index; else None."""
    try:
        size = storage.state(entry["url"]).size
    except FileNotFoundError:
        return f"the shard is missing, but {INDEX_NAME} lists it"
    if size != entry["filesize"]:
        return f"{size} bytes, but {entry['filesize']} in {INDEX_NAME}: it changed or is cut short"
    return None


def _expected(file: Path, shardlist: Sequence[dict[str, Any]]) -> dict[str, Expected]:
    indexed = file.stat().st_mtime_ns
    expected = {}
    for entry in shardlist:
        url, version = entry["url"], entry.get("version")
        if version is None and not is_url(url):
            with suppress(FileNotFoundError):  # it is found later
                version = _NEVER if (file.parent / url).stat().st_mtime_ns > indexed else None
        expected[url] = Expected(int(entry["filesize"]), version, str(entry.get("sha256", "")))
    return expected


def _suspects(index: Index, storage: Storage) -> list[str]:
    """The local shards whose time is not that in the index."""
    found = []
    for entry in index.shardlist:
        if is_url(entry["url"]):
            continue
        try:
            if storage.differs(entry["url"]):
                found.append(entry["url"])
        except FileNotFoundError:
            raise DataError(
                f"{storage.shown(entry['url'])}: the shard is missing, but {index.file.name} lists it."
            ) from None
    return found


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Waits until no other process does the same for this file; yields whether the file may be written."""
    try:
        lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(lock)


def _note_times(file: Path, content: dict[str, Any], compared: Sequence[str], storage: Storage) -> None:
    """Note in the index that the shards in `compared` are what it was made of, by their times of now.

    An index without times keeps its bytes and only becomes the newest file. It stays as it is if it lists
    other shards that are newer, as these would then be believed.
    """
    entries = {entry["url"]: entry for entry in content["shardlist"] if not is_url(entry["url"])}
    expected = _expected(file, list(entries.values()))
    if any(state.version == _NEVER for name, state in expected.items() if name not in compared):
        return
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    with suppress(OSError):  # only a saving of time: without it the same is done at the next start
        times = {name: (file.parent / name).stat().st_mtime_ns for name in entries}
        now = time.time_ns()
        if max(times.values()) < now and not any("version" in entry for entry in entries.values()):
            os.utime(file, ns=(now, now))
            return
        for name, entry in entries.items():
            if name in compared:
                entry["version"] = storage.version(name)
            elif "version" not in entry:
                entry["version"] = version_of(times[name])
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    temporary.unlink(missing_ok=True)
