"""The index of a folder of WebDataset shards: where every image lies, and its label.

shardindex.json          valid for the `wids` reader, our keys beside; has the table's sha256
shardindex.offsets.npy   the table: one ROW a sample, memory-mappable

A sample is all members of a shard with one key: the path up to the first dot of the base name, as
in the webdataset library; the rest, in lower case, is the extension. It has one image (jpg, jpeg,
png, webp) and a label: KEY.cls, an integer in ASCII digits, or else the "label" of KEY.json. A set
in which no sample has a label is an unlabelled one (-1). Nothing is extracted and nothing
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError
from data_tools.tar import Member, scan

INDEX_NAME = "shardindex.json"
OFFSETS_NAME = "shardindex.offsets.npy"
CLASSES_NAME = "classes.json"
IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
ROW = np.dtype([("header", "<i8"), ("offset", "<i8"), ("label", "<i8"), ("size", "<i4"), ("shard", "<i4")])
NO_LABEL = -1
_MAX_IMAGE, _MAX_LABEL_FILE = 2**31 - 1, 1 << 20
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # as webdataset: a dot file has no key
_DIGITS = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True)
class Problem:
    """A sample (or, without a key, a shard) that cannot be used, and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}:{self.key}: {self.reason}" if self.key else f"{self.shard}: {self.reason}"


@dataclass
class Scan:
    """What a pass over one shard found: ROWs in the order of the file, and problems."""

    rows: NDArray[np.void]
    problems: list[Problem] = field(default_factory=list)
    unlabelled: list[tuple[int, str]] = field(default_factory=list)  # row, key


@dataclass(frozen=True)
class Summary:
    """What build_index wrote, and the samples it had to leave out."""

    samples: int
    shards: int
    bytes: int
    problems: tuple[Problem, ...]


def build_index(folder: str | Path) -> Summary:
    """Write the index of every *.tar in `folder`: one pass over the headers, one for the sha256.

    A damaged shard, or one without a sample, is a DataError; a sample that cannot be used (no
    image, two images, no label or one that is not a number) is left out and reported.
    """
    folder = Path(folder)
    paths = shard_paths(folder)
    classes = load_classes(folder)
    scans = [scan_shard(path, number, classes) for number, path in enumerate(paths)]
    rows = without_unlabelled(scans, paths)
    table = np.concatenate(rows)
    _write_atomically(folder / OFFSETS_NAME, lambda file: np.save(file, table, allow_pickle=False))
    shardlist = [
        {
            "url": path.name,
            "nsamples": len(part),
            "filesize": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path, part in zip(paths, rows, strict=True)
    ]
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": shardlist,
        "samples": len(table),
        "num_classes": len(classes) if classes else int(table["label"].max()) + 1,
        "offsets": {"file": OFFSETS_NAME, "sha256": sha256_of(folder / OFFSETS_NAME)},
    }
    write_json(folder / INDEX_NAME, index)
    problems = tuple(problem for scan_ in scans for problem in scan_.problems)
    return Summary(len(table), len(paths), sum(s["filesize"] for s in shardlist), problems)


def shard_paths(folder: Path) -> list[Path]:
    """The *.tar files of a folder in order of their names; UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give the folder that holds the *.tar shards.")
    paths = sorted(path for path in folder.glob("*.tar") if path.is_file())
    if not paths:
        raise UsageError(f"{folder} holds no *.tar shards: make some with python -m data_tools pack SRC DST.")
    return paths


def load_classes(folder: Path) -> list[str] | None:
    """The class names in the order of their labels, or None if the folder has no classes.json."""
    path = folder / CLASSES_NAME
    if not path.exists():
        return None
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{path} must be a JSON list of class names in the order of the labels.")
    return classes


def scan_shard(path: Path, number: int, classes: list[str] | None) -> Scan:
    """The samples of one shard. Raises DataError for a damaged shard or one without any sample."""
    problems: list[Problem] = []
    unlabelled: list[tuple[int, str]] = []
    rows = []
    with open(path, "rb") as file:
        for key, members in _group(file, path, problems).items():
            try:
                image = _image(members)
                label = _label(file, members, classes)
            except ValueError as error:
                problems.append(Problem(path.name, key, str(error)))
                continue
            if label == NO_LABEL:
                unlabelled.append((len(rows), key))
            rows.append((image.header, image.offset, label, image.size, number))
    if not rows:
        raise DataError(f"{path} holds no usable sample: remove it or write it again.")
    return Scan(np.array(rows, ROW), problems, unlabelled)


def without_unlabelled(scans: list[Scan], paths: list[Path]) -> list[NDArray[np.void]]:
    """The rows of each shard; in a labelled set, samples without a label become problems."""
    if not any((scan_.rows["label"] >= 0).any() for scan_ in scans):
        return [scan_.rows for scan_ in scans]
    kept = []
    for scan_, path in zip(scans, paths, strict=True):
        reason = "no label (KEY.cls, or KEY.json with a label)"
        scan_.problems += [Problem(path.name, key, reason) for _, key in scan_.unlabelled]
        kept.append(scan_.rows[scan_.rows["label"] >= 0])
        if not len(kept[-1]):
            raise DataError(f"{path} holds no labelled sample while other shards do.")
    return kept


def _group(file: BinaryIO, path: Path, problems: list[Problem]) -> dict[str, list[tuple[str, Member]]]:
    """Members by key, in the order of the first; only image, cls and json members are looked at."""
    groups: dict[str, list[tuple[str, Member]]] = {}
    for member in scan(file, str(path), path.stat().st_size):
        match = _NAME.fullmatch(member.name)
        if match is None:
            continue
        key, extension = match[1], match[2].lower()
        if extension.rpartition(".")[2] not in IMAGE_EXTENSIONS | {"cls", "json"}:
            continue
        if reason := _unusable(member, extension):
            problems.append(Problem(path.name, key, reason))
        else:
            groups.setdefault(key, []).append((extension, member))
    return groups


def _unusable(member: Member, extension: str) -> str | None:
    if not member.regular:
        return f"{member.name} is a link, folder or device, not a file"
    if "\\" in member.name or member.name.startswith("/") or ".." in member.name.split("/"):
        return f"{member.name} is not a relative path inside the shard"
    if "." in extension and extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
        return f"the first dot of {member.name} ends the key: rename it"
    return None


def _image(members: list[tuple[str, Member]]) -> Member:
    images = [member for extension, member in members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise ValueError("no image" if not images else f"{len(images)} images under one key")
    if not 0 < images[0].size <= _MAX_IMAGE:
        raise ValueError(f"an image of {images[0].size} bytes")
    return images[0]


def _label(file: BinaryIO, members: list[tuple[str, Member]], classes: list[str] | None) -> int:
    """The label of a sample: from its cls member, else its json member, else NO_LABEL."""
    for wanted, parse in (("cls", _parse_cls), ("json", _parse_json)):
        found = [member for extension, member in members if extension == wanted]
        if len(found) > 1:
            raise ValueError(f"{len(found)} {wanted} members under one key")
        if not found:
            continue
        if found[0].size > _MAX_LABEL_FILE:
            raise ValueError(f"a {wanted} member of {found[0].size} bytes")
        file.seek(found[0].offset)
        label = parse(file.read(found[0].size))
        if classes is not None and label >= len(classes):
            raise ValueError(f"label {label}, but {CLASSES_NAME} has {len(classes)} classes")
        return label
    return NO_LABEL


def _parse_cls(data: bytes) -> int:
    digits = data.strip(b" \t\r\n")
    if not _DIGITS.fullmatch(digits):  # int() alone would take +1, 1_0 and Arabic digits
        raise ValueError(f"label {digits[:40]!r} is not an integer of 0 or more")
    return int(digits)


def _parse_json(data: bytes) -> int:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its json member is not valid JSON") from None
    label = content.get("label") if isinstance(content, dict) else None
    if label is None:
        return NO_LABEL
    if isinstance(label, list):
        raise ValueError("several labels are not supported yet")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 10**18:
        raise ValueError(f"label {str(label)[:40]!r} is not an integer of 0 or more")
    return label


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON in ASCII with a newline at the end, through a temporary name."""
    data = (json.dumps(content, indent=1) + "\n").encode()
    _write_atomically(path, lambda file: file.write(data))


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)
