"""The labels of images that are to be packed: from class folders, a csv, or shards that are packed again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.packing.csv_table import CsvOptions, Row, read_csv
from data_tools.packing.image_names import ImageNames
from data_tools.packing.listing import Listing
from data_tools.packing.sources import ShardSource
from data_tools.shards.class_names import alike, plain_name, quoted_names
from data_tools.shards.label_meaning import GIVEN, Kind, LabelError, check_numbers, refuse
from data_tools.shards.label_survey import Survey
from data_tools.shards.labels import NO_RULES, LabelRules, Labels, parse_text
from data_tools.shards.roles import role
from data_tools.shards.shard_set import ShardSet


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
    ignored: list[str] = field(default_factory=list)  # images and samples left out for want of a label
    said: str = ""
    numeric: bool = False
    no_class: list[str] = field(default_factory=list)


def label_by_folder(source: Listing, rules: LabelRules = NO_RULES) -> Labelled:
    """Labels from the first folder of each path, as in torchvision's ImageFolder.

    check_class_folders() says whether these folders are classes. Otherwise as label_by_names().
    """
    folders = {path: path.partition("/")[0] for path in source.images}
    return label_by_names(source, folders, rules, "the first folder of each path")


def label_by_names(source: Listing, names: dict[str, str], rules: LabelRules, said: str) -> Labelled:
    """Labels from the name of the class of each path.

    Classes are in byte order, or those of rules.classes; then DataError for a name that is none of them.
    said: where the names are from.
    """
    plain = {name: plain_name(name) for name in names.values()}
    found = set(plain.values())
    rules = rules.naming(found)
    classes = list(rules.classes or ()) or sorted(found, key=str.encode)
    number = _numbered(classes)
    entries, no_class = [], []
    for path, name in names.items():
        if (label := number.get(plain[name])) is not None:
            entries.append(Entry(path, source.images[path], label))
        else:
            what = "the name of several classes" if plain[name] in classes else "no class"
            no_class.append(f"'{path}': '{plain[name]}' is {what} of --classes")
    if no_class and not rules.allow_unlabelled:
        raise refuse(no_class)
    if not entries:
        raise DataError(f"{source.name} has no image of a class of --classes.")
    said += f": {len(found)} classes"
    if len(found) < len(plain):
        said += f" ({len(plain)} with those that have one name in two forms of Unicode)"
    said += f", of the {len(classes)} of --classes" if rules.classes is not None else ""
    said += alike(found)
    if rules.classes is None and (odd := next(filter(_is_other_number, enumerate(classes)), None)):
        said += f"; '{odd[1]}' is label {odd[0]}, as names are in byte order (--classes gives another one)"
    left = [path for path in source.images if path not in names]
    return Labelled(entries, classes, left, said, no_class=no_class)


def label_by_csv(source: Listing, options: CsvOptions, rules: LabelRules = NO_RULES) -> Labelled:
    """Labels from a csv; images that it does not list are ignored.

    What the labels mean: see data_tools/shards/label_meaning.py. UsageError for a csv that is missing, or
    whose columns cannot be told apart; DataError, with the line, for a bad row.
    """
    images = source.images
    finder = ImageNames(images, Path(source.name), options.path)
    table = read_csv(options, finder.names_one)
    rows, also = _rows_of_images(table.rows, finder, source, options)
    parsed = {row.label: _labels(row.label, options.separator) for row in rows.values()}
    labels = {path: parsed[row.label] for path, row in rows.items()}
    survey = Survey()
    for path, found in labels.items():
        survey.add(found, f"{options.path}:{rows[path].line}")
    if table.classes and rules.classes is None:
        classes = tuple(map(plain_name, table.classes))
        meaning = survey.decide(replace(rules, classes=classes), "the columns", from_table=True)
    else:
        meaning = survey.decide(rules, GIVEN, from_table=True)
    numbers: dict[str, tuple[float, ...]] = {}
    no_class: list[str] = []
    for path, found in labels.items():
        try:
            numbers[path] = meaning.resolve(found)
        except LabelError as error:
            no_class.append(f"{options.path}:{rows[path].line}: '{path}': {error}")
    if no_class and not rules.allow_unlabelled:
        raise refuse(no_class)
    several = any(len(found) != 1 for found in numbers.values())
    if meaning.kind is Kind.number and len(lengths := {len(found) for found in numbers.values()}) > 1:
        few, many = min(lengths), max(lengths)
        path = next(path for path, found in numbers.items() if len(found) == few)
        raise DataError(
            f"{options.path}:{rows[path].line}: '{path}' has {few} numbers where others have {many}: give "
            "every image the same number of them."
        )
    entries = [
        Entry(path, images[path], numbers[path] if several else numbers[path][0])
        for path in images
        if path in numbers
    ]
    if not entries:
        raise DataError(f"{options.path} has no label that is a class.")
    said = "; ".join([f"{options.path} ({table.understood}): {meaning.said}", *also])
    if options.separator is None and (mark := _separator_inside(labels)):
        said += f"; '{mark}' is part of the names (--label-separator '{mark}' makes several labels)"
    left = [path for path in images if path not in rows]
    return Labelled(entries, meaning.classes or [], left, said, meaning.kind is Kind.number, no_class)


def label_by_shards(source: ShardSource, rules: LabelRules = NO_RULES) -> Labelled:
    """The labels that the samples of shards have. Without class names, the names are the numbers.

    rules.classes: the shards' names get the numbers that they have there; without names the numbers stay.
    DataError for a class that is none of them.
    """
    shards = source.shards
    rules = rules.naming(shards.classes or ())
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
            name = f" ('{shards.classes[error.args[0]]}')" if shards.classes else ""
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
        check_numbers(rules.classes)
        return {label: label for label in range(len(rules.classes))}
    number = _numbered(rules.classes)
    return {label: number[name] for label, name in enumerate(shards.classes) if name in number}


def _is_other_number(labelled: tuple[int, str]) -> bool:
    label, name = labelled
    return name.isascii() and name.isdigit() and int(name) != label


def _numbered(classes: Sequence[str]) -> dict[str, int]:
    """The number of each class; of names that two classes have none."""
    times = Counter(classes)
    return {name: label for label, name in enumerate(classes) if times[name] == 1}


def _rows_of_images(
    rows: list[Row], finder: ImageNames, source: Listing, options: CsvOptions
) -> tuple[dict[str, Row], list[str]]:
    """The row of each image, and what was found on the way, in words.

    DataError, with the line, for a row that names no image, or several, or one that another row names.
    """
    found: dict[str, Row] = {}
    missing = []
    if rows:
        finder.leave_out_start(rows[0].file)
    for row in rows:
        place = f"{options.path}:{row.line}"
        try:
            path = finder.find(row.file)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if path is None:
            missing.append(row)
        elif found.setdefault(path, row) is not row:
            raise DataError(
                f"{place}: '{path}' is listed twice: give each image one row; several labels stand in it "
                "with --label-separator."
            )
    if missing and not (options.allow_missing and found):
        name = missing[0].file
        why = f"files are named by their path inside of it, as '{next(iter(source.images))}' is"
        if reason := source.why_not(name.replace("\\", "/").removeprefix("./")):
            why = f"it is passed over ({reason})"
        if found:
            why += f"; --allow-missing leaves out the {len(missing)} of {len(rows)} rows without an image"
        raise DataError(f"{options.path}:{missing[0].line}: {source.name} has no image '{name}': {why}.")
    if not found:
        raise DataError(f"{options.path} lists no images.")
    below = [path for path, row in found.items() if path.count("/") > row.file.replace("\\", "/").count("/")]
    said = [f"'{finder.start}' before the names is left out"] * bool(finder.start)
    if below:
        said.append(
            f"images found in sub-folders: {len(below)}, first '{found[below[0]].file}' as '{below[0]}'"
        )
    folders = sorted({path.partition("/")[0] for path in found})
    if len(set(map(role, folders))) == len(folders) > 1 and all(map(role, folders)):
        said.append(f"images of {quoted_names(folders, ' and ')} are taken together")
    if missing:
        said.append(f"rows without an image: {len(missing)}, first '{missing[0].file}'")
    return found, said


def _labels(label: str | tuple[str, ...], separator: str | None) -> Labels:
    """The labels in a cell, or of the columns of classes that hold a 1."""
    if isinstance(label, tuple):
        return tuple(map(plain_name, label))
    whole = parse_text(label)  # a list in brackets is one whatever the separator
    return sum(map(parse_text, label.split(separator)), ()) if separator and len(whole) == 1 else whole


def _separator_inside(labels: dict[str, Labels]) -> str | None:
    """A | or ; inside of a label, or a blank or comma between labels that stand alone, too."""
    names = {label for found in labels.values() for label in found if isinstance(label, str)}
    for mark in "|; ,":
        inside = [name for name in names if mark in name]
        if (inside and mark in "|;") or any(names.issuperset(name.split(mark)) for name in inside):
            return mark
    return None
