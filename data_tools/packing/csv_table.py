"""Reading a csv of labels: its encoding, its separator, and which columns are the file and the label.

What the table does not say itself is decided by what is known: usual names of columns, and which column
names images of the source. Where that is not enough, the error names the columns that were found.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import DataError, UsageError

FILE, LABEL = "file", "label"
_FILE_NAMES = {
    *("file", "files", "filename", "filenames", "filepath", "filepaths", "path", "paths", "relpath"),
    *("relativepath", "image", "images", "imagename", "imagenames", "imagepath", "imagepaths"),
    *("imagefile", "imagefiles", "imagefilename", "imageid", "imageids", "img", "imgname", "imgpath"),
    *("imgpaths", "imgid", "imgfile", "photo", "picture", "id", "name"),
}
_LABEL_NAMES = {
    *("label", "labels", "labelid", "labelname", "class", "classes", "classid", "classname", "classlabel"),
    *("category", "categoryid", "categoryname", "target", "targets", "tag", "tags", "y"),
}
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|", " ": "space"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_TRIED = 50  # rows that are looked at to tell the separator and the columns
_SEP_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # by which Excel is told the separator


@dataclass(frozen=True)
class CsvOptions:
    """A csv of labels. columns: the names, or the places from 1 on, of its columns `file` and `label`, where
    somebody says them. separator: between several labels of an image; None: each image has one."""

    path: Path
    columns: dict[str, str] = field(default_factory=dict)
    separator: str | None = None


@dataclass(frozen=True)
class Row:
    """One row: its line in the file, the image and the label as they are written."""

    line: int
    file: str
    label: str


@dataclass(frozen=True)
class CsvTable:
    """The rows of a csv. understood: its form, for messages."""

    rows: list[Row]
    understood: str


def read_csv(options: CsvOptions, is_image: Callable[[str], bool]) -> CsvTable:
    """The rows of a csv; is_image(text) says whether a cell names an image of the source.

    UsageError for a csv that is missing, or whose columns cannot be told apart; DataError, with the line, for
    a row that could mean two things and for a file that is no text.
    """
    text, encoding = _decoded(options.path)
    if told := _SEP_LINE.match(text):
        text = "\n" + text[told.end() :]  # an empty line in its place keeps the numbers of the lines
    separators = [told[1]] if told else list(_SEPARATORS)
    separator = _separator(text, separators, options, is_image)
    rows = _rows(text, separator, options.path)
    if not rows:
        raise DataError(f"{options.path} lists no images.")
    file, label, header = _columns([cells for _, cells in rows], options, is_image)
    width, mark = len(rows[0][1]), _SEPARATORS.get(separator, separator)
    found = []
    for line, cells in rows[header:]:
        if len(cells) > width and any(cells[width:]):
            raise DataError(
                f"{options.path}:{line}: more cells than columns: a name with a {mark} stands in quotes."
            )
        cells = cells + [""] * (width - len(cells))
        found.append(Row(line, cells[file], cells[label]))
    first = rows[0][1]
    form = [f"file is column '{first[file]}' and label '{first[label]}'"]
    if not header:
        form = [f"without a header, file is column {file + 1} and label {label + 1}"]
    form += [f"separated by {mark}"] * (separator != ",")
    form += [encoding] * (encoding != "UTF-8")
    return CsvTable(found, ", ".join(form))


def _decoded(path: Path) -> tuple[str, str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the csv with the labels.") from None
    codec, shown = next((mark[1:] for mark in _MARKS if data.startswith(mark[0])), ("utf-8", "UTF-8"))
    head = data[:4096]
    if codec == "utf-8" and b"\0" in head:  # UTF-16 without a mark: every other byte of plain text is 0
        codec, shown = ("utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"), "UTF-16"
    try:
        return data.decode(codec), shown
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: this is not a csv in {shown} (byte {data[error.start]:#04x}): save it as UTF-8."
        ) from None


def _rows(text: str, separator: str, path: Path, count: int | None = None) -> list[tuple[int, list[str]]]:
    """The lines and the cells of all rows that are not empty, or of the first `count`."""
    # strict: a quote that is never closed would swallow the rest of the table.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    found: list[tuple[int, list[str]]] = []
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
            tried[separator] = [cells for _, cells in _rows(text, separator, options.path, _TRIED)]
        except DataError:
            continue
    for separator, rows in tried.items():
        try:
            width = len(rows[0]) if rows else 0
            if separator == " " and any(len(cells) != 2 for cells in rows):
                continue
            if width > 1:
                _columns(rows, options, is_image)
                return separator
        except UsageError:
            continue
    return next(
        (one for one, rows in tried.items() if rows and len(rows[0]) > 1 and one != " "), separators[0]
    )


def _columns(
    rows: list[list[str]], options: CsvOptions, is_image: Callable[[str], bool]
) -> tuple[int, int, int]:
    """The places of the file and of the label, and how many rows are a header: 1 or 0."""
    first, rest = rows[0], rows[1 : _TRIED + 1]
    names = [_folded(cell) for cell in first]
    usual = {FILE: _usual(names, FILE, _FILE_NAMES), LABEL: _usual(names, LABEL, _LABEL_NAMES)}
    told = {what: _told(first, name, options.path) for what, name in options.columns.items()}
    if len(first) < 2 or any(names.count(what) > 1 and what not in told for what in (FILE, LABEL)):
        raise _unclear(first, options.path)
    images = [
        place for place in range(len(first)) if rest and all(is_image(_cell(row, place)) for row in rest)
    ]
    file = told.get(FILE)
    if file is None:
        candidates = (
            usual[FILE] if len(usual[FILE]) == 1 else [p for p in images if p in usual[FILE]] or images
        )
        if len(candidates) != 1:
            if rest or not all(is_image(cell) for cell in first[:1]):
                raise _unclear(first, options.path)
            candidates = [0]
        file = candidates[0]
    label = told.get(LABEL)
    if label is None:
        candidates = [place for place in usual[LABEL] if place != file]
        if not candidates and len(first) == 2:
            candidates = [1 - file]
        if len(candidates) != 1:
            raise _unclear(first, options.path)
        label = candidates[0]
    if file == label:
        raise UsageError(
            f"{options.path}: the file and the label cannot be the same column, '{first[file]}'."
        )
    by_name = not all(map(_is_number, options.columns.values()))
    known = bool(usual[FILE] and usual[LABEL]) and not is_image(first[file])
    return file, label, int(by_name or known or _is_header(first, rest, file, label, is_image))


def _is_header(
    first: list[str], rest: list[list[str]], file: int, label: int, is_image: Callable[[str], bool]
) -> bool:
    """Whether the first row can be nothing but names of columns."""
    number = any(re.fullmatch(r"[+-]?[0-9.]+", cell) for cell in first)
    looks_like_a_file = is_image(first[file]) or re.search(r"\.\w{3,4}$|[/\\]", first[file])
    return not (number or looks_like_a_file or any(_cell(row, label) == first[label] for row in rest))


def _usual(names: list[str], exact: str, known: set[str]) -> list[int]:
    """The places of usual names; only those of `exact` where it is there."""
    return [place for place, name in enumerate(names) if name == exact] or [
        place for place, name in enumerate(names) if name in known
    ]


def _told(first: list[str], name: str, path: Path) -> int:
    """The place of the column that somebody names: as it is written, in other case, or by its number."""
    if _is_number(name) and 1 <= int(name) <= len(first):
        return int(name) - 1
    places = [place for place, cell in enumerate(first) if cell == name] or [
        place for place, cell in enumerate(first) if _folded(cell) == _folded(name)
    ]
    if len(places) == 1:
        return places[0]
    raise UsageError(
        f"{path} has {len(places) or 'no'} column '{name}'; it has {_shown(first)}: say which with --columns."
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _unclear(first: list[str], path: Path) -> UsageError:
    return UsageError(
        f"{path} must have the columns file and label, once, in its first line, which has {_shown(first)}: "
        "say which are meant with --columns file=NAME,label=NAME (or their numbers, from 1)."
    )


def _shown(first: list[str]) -> str:
    return ", ".join(map(repr, first[:20])) + (" ..." if len(first) > 20 else "")


def _folded(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name.casefold())


def _cell(row: list[str], place: int) -> str:
    return row[place] if place < len(row) else ""
