"""The labels of images that are to be packed: from class folders, a csv, or shards that are packed again."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.packing.listing import Listing
from data_tools.packing.sources import ShardSource
from data_tools.shards.labels import MAX_CLASSES

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_SEPARATORS = re.compile(r"[|;]")


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
    """The images in byte order of their paths; the class names in the order of the labels."""

    entries: list[Entry]
    classes: list[str]
    ignored: list[str] = field(default_factory=list)  # images and samples left out for want of a label


def label_by_folder(source: Listing) -> Labelled:
    """Labels from the first folder of each path, as in torchvision's ImageFolder.

    Class names are in byte order. check_class_folders() says whether these folders are classes.
    """
    classes = sorted({path.partition("/")[0] for path in source.images}, key=os.fsencode)
    number = {name: label for label, name in enumerate(classes)}
    entries = [Entry(path, size, number[path.partition("/")[0]]) for path, size in source.images.items()]
    return Labelled(entries, classes)


def label_by_csv(source: Listing, table: str | Path) -> Labelled:
    """Labels from a csv with the columns file and label; images that it does not list are ignored.

    Several labels are separated by | or ;. If all labels are whole numbers, they are the classes. If all
    are numbers and some are fractions, they are numbers for a regression to predict. Otherwise they are
    class names, which get numbers in byte order.
    UsageError for a csv that is missing or lacks a column; DataError, with the line, for a bad row.
    """
    images = source.images
    names: dict[str, list[str]] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if columns.count("file") != 1 or columns.count("label") != 1:
                raise UsageError(f"{table} must have the columns file and label, once, in its first line.")
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{table}:{reader.line_num}: more cells than columns: several labels of an image "
                        "are separated by |, and a name with a comma stands in quotes."
                    )
                path = (row["file"] or "").removeprefix("./")
                labels = [label.strip() for label in _SEPARATORS.split(row["label"] or "")]
                if path not in images:
                    why = source.why_not(path)
                    raise DataError(
                        f"{table}:{reader.line_num}: {source.name} has no image {path!r}: "
                        + (
                            f"it is passed over ({why})."
                            if why
                            else "files are named by their path inside of it."
                        )
                    )
                if what := _wrong(path, labels, names):
                    raise DataError(f"{table}:{reader.line_num}: {path!r} {what}.")
                names[path] = labels
    except FileNotFoundError:
        raise UsageError(f"{table} does not exist: give the csv with the labels.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a csv in UTF-8 ({error}).") from error
    if not names:
        raise DataError(f"{table} lists no images.")
    number, classes = _number({label for labels in names.values() for label in labels}, str(table))
    several = any(len(labels) > 1 for labels in names.values())
    entries = []
    for path in images:
        if path in names:
            numbers = tuple(number[label] for label in names[path])
            entries.append(Entry(path, images[path], numbers if several else numbers[0]))
    return Labelled(entries, classes, [path for path in images if path not in names])


def label_by_shards(source: ShardSource) -> Labelled:
    """The labels that the samples of shards have. Without class names, the names are the numbers."""
    shards = source.shards
    ignored = [str(problem) for problem in shards.problems]
    if shards.left_out and not ignored:
        advice = f"python -m data_tools verify {source.name} names them"
        ignored = [f"a sample that the index leaves out: {advice}"] * shards.left_out
    entries = []
    for path, size in sorted(source.files(), key=lambda item: os.fsencode(item[0])):
        labels = shards.labels_of(source.number(path))
        several = len(labels) > 1 or shards.multilabel
        entries.append(Entry(path, size, labels if several else next(iter(labels), None)))
    if shards.numeric:
        return Labelled(entries, [], ignored)
    classes = shards.classes or [str(label) for label in range(shards.num_classes)]
    return Labelled(entries, classes, ignored)


def _wrong(path: str, labels: list[str], names: dict[str, list[str]]) -> str | None:
    if path in names:
        return "is listed twice"
    if not all(labels):
        return "has no label" if len(labels) == 1 else "has an empty label"
    numbers = all(map(_NUMBER.fullmatch, labels)) and not all(label.isdigit() for label in labels)
    return "has a label twice" if len(set(labels)) < len(labels) and not numbers else None


def _number(labels: set[str], table: str) -> tuple[dict[str, int] | dict[str, float], list[str]]:
    if all(re.fullmatch("[0-9]+", label) for label in labels):
        count = max(map(int, labels)) + 1
        if count > MAX_CLASSES:
            raise UsageError(f"{table} has a label of {count - 1}: labels count the classes from 0.")
        return {label: int(label) for label in labels}, [str(label) for label in range(count)]
    if all(_NUMBER.fullmatch(label) for label in labels):
        return {label: float(label) for label in labels}, []
    classes = sorted(labels, key=os.fsencode)
    return {name: label for label, name in enumerate(classes)}, classes
