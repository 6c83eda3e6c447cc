"""The labels of images that are to be packed: from class folders, a csv, or shards that are packed again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.packing.csv_table import CsvOptions, read_csv
from data_tools.packing.image_names import ImageNames
from data_tools.packing.sources import ShardSource, Source, extension
from data_tools.shards.label_meaning import Kind, LabelError, Survey, refuse
from data_tools.shards.labels import NO_RULES, LabelRules, Labels, parse_text
from data_tools.shards.names import plain_name
from data_tools.shards.shard_set import ShardSet

_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Entry:
    """One image to be packed: its path in the source, with slashes; its size in bytes; its labels.

    label: one, or a tuple of several; None where the shards that it comes from have none.
    """

    path: str
    size: int
    label: float | tuple[float, ...] | None  # int for classes, float for numbers to predict


@dataclass(frozen=True)
class Labelled:
    """The images in byte order of their paths; the class names in the order of the labels.

    said: what was taken for the label, and why. numeric: labels are numbers to predict. no_class: images that
    are left out, as LabelRules.allow_unlabelled allows, and why.
    """

    entries: list[Entry]
    classes: list[str]
    ignored: list[str] = field(default_factory=list)  # files and samples that are left out
    said: str = ""
    numeric: bool = False
    no_class: list[str] = field(default_factory=list)


def label_by_folder(source: Source, rules: LabelRules = NO_RULES) -> Labelled:
    """Labels from the first folder of each path, as in torchvision's ImageFolder.

    Class names are in byte order, or those of rules.classes. UsageError for an image outside of any class
    folder, and for folders that are all called train, val, test or the like. DataError for a source without
    images, and for a folder that is none of rules.classes.
    """
    images, ignored = _images(source)
    if loose := next((path for path in images if "/" not in path), None):
        raise UsageError(
            f"{source.name} holds {loose!r} outside of any class folder: put every image in the "
            "folder of its class, or give the labels with --csv FILE."
        )
    folders = {path.partition("/")[0] for path in images}
    if folders <= _SPLITS:
        raise UsageError(
            f"{source.name} holds the splits {', '.join(sorted(folders))}, not classes: pack each alone."
        )
    names = {plain_name(folder) for folder in folders}
    known = rules.classes is not None
    classes = list(rules.classes or ()) if known else sorted(names, key=str.encode)
    number = _numbered(classes)
    entries, no_class = [], []
    for path in images:
        name = plain_name(path.partition("/")[0])
        if name in number:
            entries.append(Entry(path, images[path], number[name]))
        else:
            no_class.append(f"{path!r}: its folder is no class of --classes")
    if no_class and not rules.allow_unlabelled:
        raise refuse(no_class)
    said = f"the first folder of each path: {len(names)} class folders"
    if len(names) < len(folders):
        said += f" ({len(folders)} with those that have one name in two forms of Unicode)"
    said += f", of the {len(classes)} classes of --classes" if known else ""
    return Labelled(entries, classes, ignored, said, no_class=no_class)


def label_by_csv(source: Source, options: CsvOptions, rules: LabelRules = NO_RULES) -> Labelled:
    """Labels from a csv; images that it does not list are ignored.

    What the labels mean: see data_tools/shards/label_meaning.py. UsageError for a csv that is missing, or
    whose columns cannot be told apart; DataError, with the line, for a bad row.
    """
    images, ignored = _images(source)
    finder = ImageNames(images, Path(source.name), options.path)
    table = read_csv(options, finder.names_one)
    labels: dict[str, Labels] = {}
    lines: dict[str, int] = {}
    no_class: list[str] = []
    for row in table.rows:
        place = f"{options.path}:{row.line}"
        path = _find(finder, row.file, place, source, images)
        if path in lines:
            raise DataError(f"{place}: {path!r} is listed twice.")
        lines[path] = row.line
        try:
            labels[path] = _split(row.label, options.separator)
        except ValueError as error:
            no_class.append(f"{place}: {path!r}: {error}")
    if not lines:
        raise DataError(f"{options.path} lists no images.")
    survey = Survey()
    for path, found in labels.items():
        survey.add(found, f"{options.path}:{lines[path]}")
    meaning = survey.decide(rules, "--classes", from_table=True)
    numbers: dict[str, tuple[float, ...]] = {}
    for path, found in labels.items():
        try:
            numbers[path] = meaning.resolve(found)
        except LabelError as error:
            no_class.append(f"{options.path}:{lines[path]}: {path!r}: {error}")
    if no_class and not rules.allow_unlabelled:
        raise refuse(no_class)
    several = any(len(found) != 1 for found in numbers.values())
    if meaning.kind is Kind.number and len(lengths := {len(found) for found in numbers.values()}) > 1:
        few, many = min(lengths), max(lengths)
        path = next(path for path, found in numbers.items() if len(found) == few)
        raise DataError(
            f"{options.path}:{lines[path]}: {path!r} has {few} numbers where others have {many}: give every "
            "image the same number of them."
        )
    entries = [
        Entry(path, images[path], numbers[path] if several else numbers[path][0])
        for path in images
        if path in numbers
    ]
    if not entries:
        raise DataError(f"{options.path} has no label that is a class.")
    said = f"{options.path} ({table.understood}): {meaning.said}"
    if options.separator is None and (mark := _separator_inside(labels)):
        said += f"; {mark!r} is part of the names (--label-separator {mark!r} makes several labels)"
    left = ignored + [path for path in images if path not in lines]
    return Labelled(entries, meaning.classes or [], left, said, meaning.kind is Kind.number, no_class)


def label_by_shards(source: ShardSource, rules: LabelRules = NO_RULES) -> Labelled:
    """The labels that the samples of shards have. Without class names, the names are the numbers.

    rules.classes: the shards' names get the numbers that they have there; without names the numbers stay.
    DataError for a class that is none of them.
    """
    shards = source.shards
    ignored = [str(problem) for problem in shards.problems if not problem.no_class]
    no_class = [str(problem) for problem in shards.problems if problem.no_class]
    if shards.left_out and not shards.problems:
        advice = f"python -m data_tools verify {source.name} names them"
        ignored = [f"a sample that the index leaves out: {advice}"] * shards.left_out
    number = _by_name(shards, rules)
    entries, outside = [], []
    for path, size in sorted(source.files(), key=lambda item: os.fsencode(item[0])):
        labels = shards.labels_of(source.number(path))
        several = len(labels) > 1 or shards.multilabel
        try:
            labels = labels if number is None else tuple(number[int(label)] for label in labels)
        except KeyError as error:
            name = f" ({shards.classes[error.args[0]]!r})" if shards.classes else ""
            outside.append(f"{path}: label {error.args[0]}{name} is no class of --classes")
        else:
            entries.append(Entry(path, size, labels if several else next(iter(labels), None)))
    if outside and not rules.allow_unlabelled:
        raise refuse(outside)
    no_class += outside
    if not entries:
        raise DataError(f"{source.name} has no label that is a class of --classes.")
    if shards.numeric:
        return Labelled(entries, [], ignored, shards.said, True, no_class)
    classes = list(rules.classes or ()) or shards.classes
    classes = classes or [str(label) for label in range(shards.num_classes)]
    said = (
        shards.said if number is None else f"{shards.said}; the classes are the {len(classes)} of --classes"
    )
    return Labelled(entries, classes, ignored, said, no_class=no_class)


def _by_name(shards: ShardSet, rules: LabelRules) -> dict[int, int] | None:
    """The number in rules.classes of each class of shards: by its name, or without names by its number.

    None where all numbers stay.
    """
    if rules.classes is None or shards.classes == list(rules.classes):
        return None
    if shards.numeric:
        raise UsageError(
            f"{shards.folder} has numbers to predict, which --classes does not name: leave it out."
        )
    if not shards.classes:
        return {label: label for label in range(len(rules.classes))}
    number = _numbered(rules.classes)
    return {label: number[name] for label, name in enumerate(shards.classes) if name in number}


def _numbered(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class; of names that two classes have none."""
    times = Counter(classes)
    return {name: label for label, name in enumerate(classes) if times[name] == 1}


def _find(finder: ImageNames, name: str, place: str, source: Source, images: dict[str, int]) -> str:
    try:
        path = finder.find(name)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    if path is None:
        raise DataError(
            f"{place}: {source.name} has no image {name!r}: files are named by their path inside of it, as "
            f"{next(iter(images))!r} is."
        )
    return path


def _split(text: str, separator: str | None) -> Labels:
    """The labels in a cell. ValueError for one that is empty."""
    parts = [text] if separator is None else text.split(separator)
    if not text:
        raise ValueError("has no label")
    if not all(part.strip() for part in parts):
        raise ValueError("has an empty label")
    return tuple(map(parse_text, parts))


def _separator_inside(labels: dict[str, Labels]) -> str | None:
    """A | or ; inside of a label."""
    names = {label for found in labels.values() for label in found if isinstance(label, str)}
    return next((mark for mark in "|;" if any(mark in name for name in names)), None)


def _images(source: Source) -> tuple[dict[str, int], list[str]]:
    images: dict[str, int] = {}
    ignored: list[str] = []
    for path, size in sorted(source.files(), key=lambda item: os.fsencode(item[0])):
        if path in images:
            raise DataError(f"{source.name} holds {path!r} twice: only one of them can be meant.")
        if extension(path) and size:
            images[path] = size
        else:
            ignored.append(path)
    if not images:
        raise DataError(f"{source.name} holds no image (jpg, jpeg, png or webp).")
    return images, ignored
