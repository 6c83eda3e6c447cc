"""The samples of one shard: which members belong together, where the image lies, its labels.

A sample consists of all members of a shard that have the same key. The key is the path up to the first
dot of the base name, as in the webdataset library; the rest, in lower case, is the extension. A sample has
one image (jpg, jpeg, png, webp; KEY.seg.png beside it is passed over) and a label: KEY.cls; where there is
none, the "label" of KEY.json; where no sample of the set has either, another key of KEY.json (see
data_tools/shards/labels.py). Nothing is extracted and nothing unpickled.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, shown
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.labels import LABEL, MAX_CLASSES, NO_LABEL, Labels, parse_cls, parse_json
from data_tools.shards.roles import members_like, role_of_key
from data_tools.shards.side_files import side_part
from data_tools.shards.storage import Storage
from data_tools.shards.tar import Member, scan

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
CLS, JSON = "cls", "json"
ROW = np.dtype([("header", "<i8"), ("offset", "<i8"), ("label", "<i8"), ("size", "<i4"), ("shard", "<i4")])
_MAX_IMAGE, _MAX_LABEL_FILE = 2**31 - 1, 1 << 20
_SEEN = 20
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # as webdataset: .name has no key


@dataclass(frozen=True)
class Problem:
    """A sample (or, without a key, a shard) that cannot be used, and why. no_class: its label is no class."""

    shard: str
    key: str
    reason: str
    no_class: bool = False

    def __str__(self) -> str:
        shard = shown(self.shard)
        return f"{shard}:{self.key}: {self.reason}" if self.key else f"{shard}: {self.reason}"


@dataclass
class Scan:
    """The samples that one shard holds.

    name: file name or URL; size: bytes. rows: ROW (N,), in the order of the file; the label of a sample with
    one class number, else NO_LABEL. several: all labels of a sample that has not exactly one class. numbers:
    the labels of a sample that are numbers to predict. unlabelled: the key of a sample without any label.
    unsettled: the key and the labels, by where they stand (cls, or a key of the json member), of a sample
    whose labels settle() of data_tools/shards/tables.py has still to understand; then it is empty. Those four
    have the number of a row as their key.
    taken: how many labels stand where. ignored: how many members have another extension; seen: some of these
    extensions. roles: those of the keys, as in train/0, with a pattern of their members.
    """

    name: str
    size: int
    sha256: str
    rows: NDArray[np.void]
    several: dict[int, tuple[int, ...]]
    numbers: dict[int, tuple[float, ...]]
    unlabelled: dict[int, str]
    unsettled: dict[int, tuple[str, dict[str, Labels]]]
    taken: Counter[str]
    problems: list[Problem]
    ignored: int
    seen: set[str]
    roles: dict[str, str]

    def leave_out(self, reasons: dict[int, Problem]) -> None:
        """Make problems of some rows; settled scans only. DataError if no row is left."""
        self.problems += reasons.values()
        kept = np.ones(len(self.rows), bool)
        kept[list(reasons)] = False
        moved = kept.cumsum() - 1
        self.several = {int(moved[row]): labels for row, labels in self.several.items() if kept[row]}
        self.numbers = {int(moved[row]): labels for row, labels in self.numbers.items() if kept[row]}
        self.unlabelled = {int(moved[row]): key for row, key in self.unlabelled.items() if kept[row]}
        self.rows = self.rows[kept]
        if not len(self.rows):
            raise no_sample(self.name, self.problems)


class LabelMembers:
    """The members of one sample that may hold its label; label_key: see LabelRules."""

    def __init__(self, label_key: str | None = None) -> None:
        self._key = label_key
        self._found: dict[str, dict[str, Labels] | str] = {}  # by extension; text: what is wrong

    @staticmethod
    def extensions(label_key: str | None) -> tuple[str, str]:
        """Their extensions; the first that has a label counts."""
        return (CLS if label_key is None else label_key.lower(), JSON)

    def read(self, file: ForwardFile, member: Member, extension: str) -> None:
        """Read one of them, a member of `file`."""
        if extension in self._found:
            self._found[extension] = f"several {extension} members under one key"
        elif member.size > _MAX_LABEL_FILE:
            self._found[extension] = f"a {extension} member of {member.size} bytes"
        else:
            file.seek(member.offset)
            data = file.read(member.size)
            try:
                found = (
                    parse_json(data, self._key) if extension == JSON else {self._key or CLS: parse_cls(data)}
                )
            except ValueError as error:
                self._found[extension] = str(error)
            else:
                self._found[extension] = found

    def labels(self) -> dict[str, Labels]:
        """The labels by where they stand: an extension, or keys of the json member, of which one is meant.

        Empty if there are none; ValueError, saying why, if they cannot be read.
        """
        for extension in self.extensions(self._key):
            found = self._found.get(extension)
            if isinstance(found, str):
                raise ValueError(found)
            if found:
                return found
        return {}


@dataclass
class _Sample:
    labels: LabelMembers
    images: list[Member] = field(default_factory=list)


def scan_shard(storage: Storage, name: str, number: int, label_key: str | None = None) -> Scan:
    """The samples of shard `name`, which is read once from front to back.

    number: of the shard in the set, for ROW. label_key: see LabelRules.
    Raises DataError, naming the shard, if it is damaged or without any usable sample.
    """
    size, shown = storage.size(name), storage.shown(name)
    file = storage.open(name, size)
    samples, problems, ignored = _group(file, name, shown, label_key)
    named = {problem.key for problem in problems}
    rows: list[tuple[float, ...]] = []
    unlabelled: dict[int, str] = {}
    unsettled: dict[int, tuple[str, dict[str, Labels]]] = {}
    taken: Counter[str] = Counter()
    roles: dict[str, str] = {}
    for key, sample in samples.items():
        try:
            image, labels = _image(sample.images), sample.labels.labels()
        except ValueError as error:
            if key not in named:
                problems.append(Problem(name, key, str(error)))
            continue
        if (role := role_of_key(key)) and role not in roles:
            roles[role] = members_like(key)
        label = NO_LABEL
        taken.update(labels.keys())
        if not labels:
            unlabelled[len(rows)] = key
        elif (plain := _class_number(labels)) is not None:
            label = plain
        else:
            unsettled[len(rows)] = key, labels
        rows.append((image.header, image.offset, label, image.size, number))
    if not rows:
        raise no_sample(shown, problems)
    table = np.array(rows, ROW)
    seen = set([extension for extension in ignored if extension][:_SEEN])
    return Scan(
        *(name, size, file.sha256(), table, {}, {}, unlabelled, unsettled, taken, problems),
        *(ignored.total(), seen, roles),
    )


def no_sample(shown: str, problems: list[Problem]) -> DataError:
    """The error for a shard in which no sample can be used."""
    first = f" (the first of {len(problems)}: {problems[0].key}: {problems[0].reason})" if problems else ""
    return DataError(f"{shown} holds no usable sample{first}: remove it or write it again.")


def _class_number(labels: dict[str, Labels]) -> int | None:
    """The only label, if it is a class number, written as such, that needs no further thought."""
    if len(labels) == 1 and (CLS in labels or LABEL in labels):
        (found,) = labels.values()
        if len(found) == 1 and type(label := found[0]) is int and 0 <= label < MAX_CLASSES:
            return label
    return None


def _group(
    file: ForwardFile, name: str, shown: str, label_key: str | None
) -> tuple[dict[str, _Sample], list[Problem], Counter[str]]:
    """Samples by key in the order of their first members; problems; how many members are ignored."""
    samples: dict[str, _Sample] = {}
    problems: list[Problem] = []
    companions: list[Problem] = []
    ignored: Counter[str] = Counter()
    wanted = LabelMembers.extensions(label_key)
    for member in scan(file, shown, file.size):
        if member.folder:
            continue
        key, extension = split_name(member.name)
        if reason := unusable(member, extension):
            belongs = member.regular and is_companion(extension)
            (companions if belongs else problems).append(Problem(name, key, reason))
            continue
        if extension not in IMAGE_EXTENSIONS and extension not in wanted:
            ignored[extension] += 1
            continue
        sample = samples.setdefault(key, _Sample(LabelMembers(label_key)))
        if extension in IMAGE_EXTENSIONS:
            sample.images.append(member)
        else:
            sample.labels.read(file, member, extension)
    alone = [one for one in companions if one.key not in samples or not samples[one.key].images]
    ignored[""] += len(companions) - len(alone)
    return samples, problems + alone, ignored


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


def _image(images: list[Member]) -> Member:
    if len(images) != 1:
        raise ValueError("no image" if not images else f"{len(images)} images under one key")
    if not 0 < images[0].size <= _MAX_IMAGE:
        raise ValueError(f"an image of {images[0].size} bytes")
    return images[0]
