"""The options of pack and index that say what the labels are."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.packing.csv_columns import FILE, LABEL
from data_tools.packing.csv_table import CsvOptions
from data_tools.shards.class_names import parse_classes
from data_tools.shards.index import CLASSES_NAME, INDEX_NAME, load_classes
from data_tools.shards.index_file import open_index
from data_tools.shards.labels import MAX_CLASSES, LabelRules
from data_tools.shards.names import local_shards


def add_label_arguments(command: argparse.ArgumentParser) -> None:
    """The options of label_rules()."""
    command.add_argument(
        "--label-key", metavar="NAME", help="the label of shards is in KEY.NAME, or at NAME in KEY.json"
    )
    command.add_argument(
        "--classes",
        metavar="FROM",
        help="the classes of a file (.json: a list or a map, .txt: a name in each line) or of other shards, "
        "or how many there are; a class that is missing here keeps its number",
    )
    command.add_argument(
        "--numbers", action="store_true", help="the labels are numbers to predict, not classes"
    )
    command.add_argument(
        "--allow-unlabelled", action="store_true", help="leave out and list samples whose label is no class"
    )
    command.add_argument(
        "--one-set",
        action="store_true",
        help="shards called train, val and the like are one set all the same",
    )


def add_csv_arguments(command: argparse.ArgumentParser) -> None:
    """The options of csv_options()."""
    command.add_argument("--csv", metavar="FILE", help="a table of the images in SRC, which may be flat")
    command.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="file=A,label=B",
        help="the columns of the csv, by name or number from 1",
    )
    command.add_argument(
        "--label-separator", metavar="MARK", help="what separates several labels of an image in the csv"
    )
    command.add_argument(
        "--where",
        type=_where,
        action="append",
        default=[],
        metavar="COLUMN=VALUE,...",
        help="only rows of the csv that have one of these values, e.g. split=train",
    )
    command.add_argument(
        "--allow-missing", action="store_true", help="leave out and count rows of the csv without an image"
    )


def label_rules(options: argparse.Namespace) -> LabelRules:
    """The rules that were given. UsageError for classes that cannot be read, or beside --numbers."""
    classes, *others = map(tuple, read_classes(options.classes)) if options.classes else (None,)
    if classes and options.numbers:
        raise UsageError("--classes and --numbers cannot both be: labels are classes or numbers to predict.")
    return LabelRules(
        *(options.label_key, classes, options.numbers, options.allow_unlabelled, options.one_set),
        other_names=tuple(others),
    )


def csv_options(options: argparse.Namespace) -> CsvOptions | None:
    """The csv that was given, or None."""
    if options.csv is None:
        if options.columns or options.label_separator or options.where or options.allow_missing:
            raise UsageError("--columns, --label-separator, --where and --allow-missing need --csv FILE.")
        return None
    where: dict[str, list[str]] = {}
    for column, values in options.where:
        where.setdefault(column, []).extend(values)
    return CsvOptions(
        *(Path(options.csv), options.columns, options.label_separator or None, where, options.allow_missing)
    )


def read_classes(given: str) -> list[list[str]]:
    """The class names that --classes names, as parse_classes() gives them. UsageError if there are none."""
    path = Path(given)
    if given.isascii() and given.isdigit() and not path.exists():
        if not 1 <= int(given) <= MAX_CLASSES:
            raise UsageError(f"--classes {given}: classes are 1 to {MAX_CLASSES:,}.")
        return [[str(label) for label in range(int(given))]]
    if path.is_file() and not re.fullmatch(r"shardindex.*\.json|.*\.tar", path.name):
        names = parse_classes(path.read_bytes(), str(path))
    elif not (path / INDEX_NAME).is_file() and (file := _classes_in(path)):
        names = parse_classes(file.read_bytes(), str(file))
    elif not path.exists() and local_shards(given) is None:
        raise UsageError(
            f"--classes {given}: it does not exist: give a file of classes, shards, or a number."
        )
    else:
        index = open_index(given)
        count = 0 if "numbers" in index.content else int(index.content["num_classes"])
        names = [load_classes(index.folder) or [str(label) for label in range(count)]]
    if not names[0]:
        raise UsageError(f"--classes {given}: it has no classes.")
    return names


def _classes_in(folder: Path) -> Path | None:
    """The file of the classes of a run, or of a model of other programs."""
    return next(filter(Path.is_file, (folder / CLASSES_NAME, folder / "config.json")), None)


def _where(text: str) -> tuple[str, list[str]]:
    column, mark, values = text.partition("=")
    if not (column and mark):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE or COLUMN=VALUE,VALUE")
    return column.strip(), [value.strip() for value in values.split(",")]


def _columns(text: str) -> dict[str, str]:
    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    columns = {what.strip(): name.strip() for what, name in found.items()}
    if len(found) < len(text.split(",")) or not columns.keys() <= {FILE, LABEL} or not all(columns.values()):
        raise argparse.ArgumentTypeError(f"'{text}' is not file=NAME,label=NAME")
    return columns
