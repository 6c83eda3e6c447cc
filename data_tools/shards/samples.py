"""The samples of one shard: which members belong together, where the image lies, its labels.

A sample consists of all members of a shard that have the same key. The key is the path up to the first
dot of the base name, as in the webdataset library; the rest, in lower case, is the extension. A sample has
one image (jpg, jpeg, png, webp; KEY.seg.png beside it is passed over) and a label: KEY.cls, an integer in
ASCII digits; where there is none, the "label" of KEY.json, which is a number or a list of numbers. Nothing is
extracted and nothing unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.labels import NO_LABEL, parse_cls, parse_json
from data_tools.shards.side_files import side_part
from data_tools.shards.storage import Storage
from data_tools.shards.tar import Member, scan

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
_Parser = Callable[[bytes], tuple[float, ...] | None]
LABEL_EXTENSIONS: dict[str, _Parser] = {"cls": parse_cls, "json": parse_json}
ROW = np.dtype([("header", "<i8"), ("offset", "<i8"), ("label", "<i8"), ("size", "<i4"), ("shard", "<i4")])
_MAX_IMAGE, _MAX_LABEL_FILE = 2**31 - 1, 1 << 20
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # as webdataset: .name has no key


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
    """The samples that one shard holds.

    name: file name or URL; size: bytes. rows: ROW (N,), in the order of the file; the label is the first
    one of the sample, NO_LABEL where there is none. The next three have the number of a row as their key.
    several: all labels of a sample whose list has not exactly one. numbers: all labels of a sample with
    fractions; its row has NO_LABEL. unlabelled: the key of a sample without any label.
    ignored: how many files are neither image, cls nor json.
    """

    name: str
    size: int
    sha256: str
    rows: NDArray[np.void]
    several: dict[int, tuple[int, ...]]
    numbers: dict[int, tuple[float, ...]]
    unlabelled: dict[int, str]
    problems: list[Problem]
    ignored: int


@dataclass
class _Sample:
    images: list[Member] = field(default_factory=list)
    labels: dict[str, tuple[float, ...] | str | None] = field(default_factory=dict)  # str: what is wrong


def scan_shard(storage: Storage, name: str, number: int, classes: list[str] | None) -> Scan:
    """The samples of shard `name`, which is read once from front to back.

    number: of the shard in the set, for ROW. classes: the class names; a label must be below their number.
    Raises DataError, naming the shard, if it is damaged or without any usable sample.
    """
    size, shown = storage.size(name), storage.shown(name)
    file = storage.open(name, size)
    samples, problems, ignored = _group(file, name, shown)
    named = {problem.key for problem in problems}
    rows: list[tuple[float, ...]] = []
    several: dict[int, tuple[int, ...]] = {}
    numbers: dict[int, tuple[float, ...]] = {}
    unlabelled: dict[int, str] = {}
    for key, sample in samples.items():
        try:
            image, labels = _image(sample.images), _labels(sample.labels, classes)
        except ValueError as error:
            if key not in named:
                problems.append(Problem(name, key, str(error)))
            continue
        if labels is None:
            unlabelled[len(rows)] = key
        elif labels and isinstance(labels[0], float):
            numbers[len(rows)] = labels
            labels = ()
        elif len(labels) != 1:
            several[len(rows)] = tuple(map(int, labels))
        label = labels[0] if labels else NO_LABEL
        rows.append((image.header, image.offset, label, image.size, number))
    if not rows:
        first = (
            f" (the first of {len(problems)}: {problems[0].key}: {problems[0].reason})" if problems else ""
        )
        raise DataError(f"{shown} holds no usable sample{first}: remove it or write it again.")
    return Scan(
        name, size, file.sha256(), np.array(rows, ROW), several, numbers, unlabelled, problems, ignored
    )


def _group(file: ForwardFile, name: str, shown: str) -> tuple[dict[str, _Sample], list[Problem], int]:
    """Samples by key in the order of their first members; problems; how many members are ignored."""
    samples: dict[str, _Sample] = {}
    problems: list[Problem] = []
    companions: list[Problem] = []
    ignored = 0
    for member in scan(file, shown, file.size):
        if member.folder:
            continue
        key, extension = split_name(member.name)
        if reason := unusable(member, extension):
            belongs = member.regular and is_companion(extension)
            (companions if belongs else problems).append(Problem(name, key, reason))
            continue
        if extension not in IMAGE_EXTENSIONS and extension not in LABEL_EXTENSIONS:
            ignored += 1
            continue
        sample = samples.setdefault(key, _Sample())
        if extension in IMAGE_EXTENSIONS:
            sample.images.append(member)
        else:
            found = extension in sample.labels
            sample.labels[extension] = (
                f"several {extension} members under one key"
                if found
                else parse_label(file, member, extension)
            )
    alone = [one for one in companions if one.key not in samples or not samples[one.key].images]
    return samples, problems + alone, ignored + len(companions) - len(alone)


def split_name(name: str) -> tuple[str, str]:
    """The key of a member, and its extension in lower case; "" for a file that belongs to no sample.

    As in webdataset, .name has no key; what lies in a folder such as @eaDir is no sample either.
    """
    match = None if "/" in name and side_part(name) else _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else (name, "")


def is_companion(extension: str) -> bool:
    """Whether a member is a further image of a sample, such as a mask: seg.png, but not 2.png."""
    words, _, kind = extension.rpartition(".")
    return kind in IMAGE_EXTENSIONS and words != "" and not all(map(str.isdigit, words.split(".")))


def unusable(member: Member, extension: str) -> str | None:
    """Why a member cannot be part of a sample, or None if it can."""
    if not member.regular:
        return f"{member.name} is a link or device, not a file"
    if "\\" in member.name or member.name.startswith("/") or ".." in member.name.split("/"):
        return f"{member.name} is not a relative path inside the shard"
    if "." in extension and extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
        return f"the first dot of {member.name} ends the key: rename it"
    return None


def parse_label(file: ForwardFile, member: Member, extension: str) -> tuple[float, ...] | str | None:
    """The labels in a cls or json member; None if it has none; a string that says what is wrong with it."""
    if member.size > _MAX_LABEL_FILE:
        return f"a {extension} member of {member.size} bytes"
    file.seek(member.offset)
    try:
        return LABEL_EXTENSIONS[extension](file.read(member.size))
    except ValueError as error:
        return str(error)


def _image(images: list[Member]) -> Member:
    if len(images) != 1:
        raise ValueError("no image" if not images else f"{len(images)} images under one key")
    if not 0 < images[0].size <= _MAX_IMAGE:
        raise ValueError(f"an image of {images[0].size} bytes")
    return images[0]


def _labels(
    found: dict[str, tuple[float, ...] | str | None], classes: list[str] | None
) -> tuple[float, ...] | None:
    """The labels of a sample: from its cls member, else its json member, else None."""
    labels = found["cls"] if "cls" in found else found.get("json")
    if isinstance(labels, str):
        raise ValueError(labels)
    for label in labels or ():
        if classes is not None and isinstance(label, int) and label >= len(classes):
            raise ValueError(f"label {label}, but classes.json has {len(classes)} classes")
    return labels
