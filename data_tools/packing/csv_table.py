"""Reading a csv of labels: its encoding, its separator, and its rows.

Which columns are the file and the label: see data_tools/packing/csv_columns.py.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import DataError, UsageError
from data_tools.packing.csv_columns import (
    LABEL,
    TRIED,
    Rows,
    as_bit,
    bits,
    cell_of,
    find_columns,
    taken,
)
from data_tools.shards.class_names import quoted_names

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|", " ": "space"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_SEP_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # by which Excel is told the separator


@dataclass(frozen=True)
class CsvOptions:
    """A csv of labels. columns: the names, or the places from 1 on, of its columns `file` and `label`, where
    somebody says them. separator: between several labels of an image; None: each image has one. where: the
    values that a column must have in the rows that are meant. allow_missing: rows without an image are left
    out."""

    path: Path
    columns: dict[str, str] = field(default_factory=dict)
    separator: str | None = None
    where: dict[str, list[str]] = field(default_factory=dict)
    allow_missing: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its line in the file, the image and the label as they are written.

    label: the names of the classes where each has a column.
    """

    line: int
    file: str
    label: str | tuple[str, ...]


@dataclass(frozen=True)
class CsvTable:
    """The rows of a csv. understood: its form, for messages. classes: the names of their columns, if any."""

    rows: list[Row]
    understood: str
    classes: tuple[str, ...]


def read_csv(options: CsvOptions, is_image: Callable[[str], bool]) -> CsvTable:
    """The rows of a csv; is_image(text) says whether a cell names an image of the source.

    UsageError for a csv that is missing, or whose columns cannot be told apart; DataError, with the line, for
    a row that could mean two things and for a file that is no text.
    """
    text, encoding = _decoded(options.path)
    if lines := _has_json_lines(options.path):
        text = _from_json_lines(text, options.path)
    if told := _SEP_LINE.match(text):
        text = "\n" + text[told.end() :]  # an empty line in its place keeps the numbers of the lines
    separators = [told[1]] if told else [","] if lines else list(_SEPARATORS)
    separator = _separator(text, separators, options, is_image)
    rows = [(line - lines, cells) for line, cells in _rows(text, separator, options.path)]
    if not rows:
        raise DataError(f"{options.path} lists no images.")
    columns = find_columns([cells for _, cells in rows], options.columns, options.path, is_image)
    width, mark = len(rows[0][1]), _SEPARATORS.get(separator, separator)
    for line, cells in rows[columns.header :]:
        if len(cells) > width and any(cells[width:]):
            raise DataError(
                f"{options.path}:{line}: more cells than columns: a name with a {mark} stands in quotes."
            )
    names = rows[0][1] if columns.header else [str(place + 1) for place in range(width)]
    by_user = LABEL in options.columns
    rows, form = taken(rows[columns.header :], names, columns, options.where, options.path, by_user)
    file, *labels = (names[place] for place in (columns.file, *columns.labels))
    classes = tuple(labels) if len(labels) > 1 else ()
    what = (
        f"each of {len(classes)} others is a class: {quoted_names(classes)}"
        if classes
        else f"label '{labels[0]}'"
    )
    form.insert(0, f"{'' if columns.header else 'without a header, '}file is column '{file}' and {what}")
    form += [f"separated by {mark}"] * (separator != ",")
    form += [encoding] * (encoding != "UTF-8")
    pair = bits(cell_of(row, place) for _, row in rows[:TRIED] for place in columns.labels)
    read = []
    for line, row in rows:
        cells = [cell_of(row, place) for place in columns.labels]
        if classes and (odd := [cell for cell in cells if as_bit(cell) not in pair]):
            raise DataError(f"{options.path}:{line}: '{odd[0]}' in the column of a class is neither 0 nor 1.")
        ones = tuple(
            name for name, cell in zip(classes, cells, strict=False) if as_bit(cell) in ("1", "true")
        )
        read.append(Row(line, cell_of(row, columns.file), ones if classes else cells[0]))
    return CsvTable(read, ", ".join(form), classes)


def _decoded(path: Path) -> tuple[str, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the csv with the labels.") from None
    codec, shown = next((mark[1:] for mark in _MARKS if data.startswith(mark[0])), ("utf-8", "UTF-8"))
    head = data[:4096]
    if codec == "utf-8" and head.count(0) * 4 > len(head):  # UTF-16 without a mark: every other byte is 0
        codec, shown = ("utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"), "UTF-16"
    json_instead = data.lstrip()[:1] in (b"{", b"[") and not _has_json_lines(path)
    if (codec == "utf-8" and b"\0" in data) or json_instead:
        raise DataError(f"{path} is another kind of file, not a csv: save the table as a csv in UTF-8.")
    try:
        return data.decode(codec), shown
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: this is not a csv in {shown} (byte {data[error.start]:#04x}): save it as UTF-8."
        ) from None


def _has_json_lines(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _from_json_lines(text: str, path: Path) -> str:
    """The objects of a metadata.jsonl as a csv; keys that hold lists or objects anywhere are left out."""
    rows: list[dict[str, object]] = []
    for line, content in enumerate(text.rstrip("\n").split("\n"), 1):
        try:
            rows.append(json.loads(content) if content.strip() else {})
            rows[-1].keys()
        except (ValueError, RecursionError, AttributeError):
            raise DataError(f"{path}:{line}: this is not an object of JSON: write it again.") from None
    nested = {key for row in rows for key, value in row.items() if isinstance(value, list | dict)}
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in nested]
    found = io.StringIO()
    writer = csv.writer(found)
    writer.writerow(keys)
    for row in rows:
        cells = ["" if row.get(key) is None else " ".join(str(row[key]).split()) for key in keys]
        writer.writerow(cells)
    return found.getvalue()


def _rows(text: str, separator: str, path: Path, count: int | None = None) -> Rows:
    """The lines and the cells of all rows that are not empty, or of the first `count`."""
    # strict: a quote that is never closed would swallow the rest of the table.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    found: Rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((reader.line_num, [cell.strip() for cell in cells]))
            if count is not None and len(found) >= count:
                break
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: this is not a csv ({error}): check its quotes."
        ) from error
    return found


def _separator(
    text: str, separators: Sequence[str], options: CsvOptions, is_image: Callable[[str], bool]
) -> str:
    """The first one that gives both columns; else the first that gives rows of several cells; else comma."""
    tried: dict[str, list[list[str]]] = {}
    for separator in separators:
        try:
            tried[separator] = [cells for _, cells in _rows(text, separator, options.path, TRIED)]
        except DataError:
            continue
    for separator, rows in tried.items():
        try:
            width = len(rows[0]) if rows else 0
            if separator == " " and any(len(cells) != (width if options.columns else 2) for cells in rows):
                continue
            if width > 1:
                find_columns(rows, options.columns, options.path, is_image)
                return separator
        except UsageError:
            continue
    return next(
        (one for one, rows in tried.items() if rows and len(rows[0]) > 1 and one != " "), separators[0]
    )
