"""Which columns of a csv are the file and the label, and which of its rows are meant.

What the table does not say itself is decided by what is known: usual names of columns, and which column
names images of the source. Where that is not enough, the error names the columns that were found.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.shards.class_names import quoted_names
from data_tools.shards.roles import role

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
TRIED = 50  # rows that are looked at to tell the separator and the columns
_SPLIT_NAMES = {
    *("split", "splits", "datasplit", "datasetsplit", "traintestsplit", "set", "subset", "partition"),
    *("fold", "folds", "kfold", "phase", "usage"),
}
_MAX_SPLITS = 20
_BITS = (frozenset(("0", "1")), frozenset(("-1", "1")), frozenset(("false", "true")))
Rows = list[tuple[int, list[str]]]  # the line of each row in the file, and its cells


@dataclass(frozen=True)
class Columns:
    """The places of the file and of the labels; header: how many rows are one, 1 or 0.

    Of several labels each is the column of a class, and holds 0 or 1.
    """

    file: int
    labels: tuple[int, ...]
    header: int


def find_columns(
    rows: list[list[str]], columns: dict[str, str], path: Path, is_image: Callable[[str], bool]
) -> Columns:
    """The columns of a csv, from its first rows. columns: what somebody says of them.

    UsageError, with the columns that were found, where they cannot be told apart.
    """
    first, rest = rows[0], rows[1 : TRIED + 1]
    names = [_folded(cell) for cell in first]
    usual = {FILE: _usual(names, FILE, _FILE_NAMES), LABEL: _usual(names, LABEL, _LABEL_NAMES)}
    told = {what: place_of(first, name, path) for what, name in columns.items()}
    if len(first) < 2 or any(names.count(what) > 1 and what not in told for what in (FILE, LABEL)):
        raise _unclear(first, path)
    images = [
        place for place in range(len(first)) if rest and all(is_image(cell_of(row, place)) for row in rest)
    ]
    file = told.get(FILE)
    if file is None:
        # Labels such as 1 are images, too, where files are called 1.jpg.
        paths = [p for p in images if all(re.search(r"\.\w+$|[/\\]", cell_of(row, p)) for row in rest)]
        images = paths or images
        candidates = (
            usual[FILE] if len(usual[FILE]) == 1 else [p for p in images if p in usual[FILE]] or images
        )
        if len(candidates) != 1:
            if rest or not all(is_image(cell) for cell in first[:1]):
                raise _unclear(first, path)
            candidates = [0]
        file = candidates[0]
    label = told.get(LABEL)
    if label is None:
        candidates = [place for place in usual[LABEL] if place != file]
        if not candidates and len(first) == 2:
            candidates = [1 - file]
        if not candidates and (classes := _classes(first, rest, file)):
            return Columns(file, classes, 1)
        if len(candidates) != 1:
            raise _unclear(first, path)
        label = candidates[0]
    if file == label:
        raise UsageError(f"{path}: the file and the label cannot be the same column, '{first[file]}'.")
    by_name = not all(map(_is_number, columns.values()))
    known = bool(usual[FILE] and usual[LABEL]) and not is_image(first[file])
    return Columns(file, (label,), int(by_name or known or _is_header(first, rest, file, label, is_image)))


def taken(
    rows: Rows, names: list[str], columns: Columns, where: dict[str, list[str]], path: Path, told: bool
) -> tuple[Rows, list[str]]:
    """The rows that have in some columns one of the values that `where` says, and that in words.

    names: of the columns; told: the user says which has the label. UsageError where rows of several sets,
    such as train and val, would be mixed, or their names be labels.
    """
    said = []
    others = set(range(len(names))).difference((columns.file, *columns.labels))
    for name, values in where.items():
        others.discard(place := place_of(names, name, path))
        found = Counter(cell_of(row, place) for _, row in rows)
        if missing := set(values).difference(found):
            raise UsageError(
                f"{path} has no '{min(missing)}' in its column '{name}', but {quoted_names(list(found))}."
            )
        rows = [(line, row) for line, row in rows if cell_of(row, place) in values]
        said.append(
            f"with {quoted_names(values, ' or ')} in column '{name}', {len(rows)} of {found.total()} rows"
        )
    label = columns.labels[0]
    if not told and len(columns.labels) == 1 and (found := _splits(rows, label, False)):
        raise UsageError(
            f"{path} has {', '.join(found)} as labels, which are names of sets: say which column has the "
            f"labels with --columns label=NAME (label={label + 1} if they are classes all the same)."
        )
    for place in sorted(others):
        name = names[place]
        if found := _splits(rows, place, _is_split(name)):
            counts = ", ".join(f"'{value}' ({count})" for value, count in found.items())
            one, *more = (shlex.quote(f"{name}={values}") for values in (next(iter(found)), ",".join(found)))
            raise UsageError(
                f"{path} has rows of several sets, as its column '{name}' says: {counts}. Take one with "
                f"--where {one}, or all with --where {more[0]}."
            )
    return rows, said


def _splits(rows: Rows, place: int, named: bool) -> Counter[str]:
    """How many rows are of each set, by the cells of a column; empty if they are not of several sets.

    named: the name of the column says that it tells sets apart.
    """
    found: Counter[str] = Counter()
    for _, row in rows:
        found[cell_of(row, place)] += 1
        if len(found) > _MAX_SPLITS:
            return Counter()
    roles = set(map(role, found))
    return found if len(found) > 1 and (named or (len(roles) > 1 and None not in roles)) else Counter()


def _is_split(name: str) -> bool:
    folded = _folded(name)
    return folded in _SPLIT_NAMES or bool(re.match("is[-_ ]?[A-Za-z]", name) and role(name[2:]))


def bits(cells: Iterable[str]) -> frozenset[str]:
    """How 0 and 1 are written, if cells hold nothing else; else empty."""
    found = set(map(as_bit, cells))
    return next((pair for pair in _BITS if found <= pair), frozenset())


def as_bit(cell: str) -> str:
    """A cell in the form that it has in bits(); "1" and "true" are 1."""
    return cell.casefold().removesuffix(".0")


def _classes(first: list[str], rest: list[list[str]], file: int) -> tuple[int, ...]:
    """The columns that are classes: all others, if they hold 0 and 1; empty if not."""
    names = list(map(_folded, first))
    places = [
        place
        for place, name in enumerate(first)
        if place != file and names[place] and not names[place].startswith("unnamed") and not _is_split(name)
    ]
    places = [place for place in places if not all(role(cell_of(row, place)) for row in rest)]
    cells = [cell_of(row, place) for row in rest for place in places]
    different = len({first[place] for place in places}) == len(places) > 1
    header = not bits(first[place] for place in places)
    return tuple(places) if different and header and cells and bits(cells) else ()


def _is_header(
    first: list[str], rest: list[list[str]], file: int, label: int, is_image: Callable[[str], bool]
) -> bool:
    """Whether the first row can be nothing but names of columns."""
    number = any(re.fullmatch(r"[+-]?[0-9.]+", cell) for cell in first)
    looks_like_a_file = is_image(first[file]) or re.search(r"\.\w{3,4}$|[/\\]", first[file])
    if rest and not looks_like_a_file and all(is_image(cell_of(row, file)) for row in rest):
        return True
    return not (number or looks_like_a_file or any(cell_of(row, label) == first[label] for row in rest))


def _usual(names: list[str], exact: str, known: set[str]) -> list[int]:
    """The places of usual names; only those of `exact` where it is there."""
    return [place for place, name in enumerate(names) if name == exact] or [
        place for place, name in enumerate(names) if name in known
    ]


def place_of(first: list[str], name: str, path: Path) -> int:
    """The place of the column that somebody names: as it is written, in other case, or by its number.

    UsageError, with the columns that there are, if there is no such one.
    """
    if _is_number(name) and 1 <= int(name) <= len(first):
        return int(name) - 1
    places = [place for place, cell in enumerate(first) if cell == name] or [
        place for place, cell in enumerate(first) if _folded(cell) == _folded(name)
    ]
    if len(places) == 1:
        return places[0]
    raise UsageError(
        f"{path} has {len(places) or 'no'} column '{name}'; it has {quoted_names(first)}: give one "
        "of these, or its number."
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _unclear(first: list[str], path: Path) -> UsageError:
    return UsageError(
        f"{path} must have the columns file and label, once, in its first line, which has "
        f"{quoted_names(first)}: say which are meant with --columns file=NAME,label=NAME (or their numbers, "
        "from 1). Where each class has a column, all of these hold 0 or 1."
    )


def _folded(name: str) -> str:
    return re.sub(r"[\s_.-]+", "", name.casefold())


def cell_of(row: list[str], place: int) -> str:
    """The cell of a row, which may be short."""
    return row[place] if place < len(row) else ""
