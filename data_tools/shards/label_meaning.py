"""What the labels of a set mean: class numbers, class names, one-hot lists, or numbers to predict.

One rule for shards and for csv files. The majority decides, never a single sample; a label that does not
fit is an error which names it. Only labels that somebody calls numbers are numbers to predict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from data_tools.errors import DataError, UsageError
from data_tools.shards.class_names import plain_name
from data_tools.shards.labels import MAX_CLASSES, MAX_NUMBER, Labels, NoClass, Value, is_number

_NEGATIVE = re.compile("-[0-9]+")
_SHOWN = 10
GIVEN = "--classes"  # as the place that classes come from


class Kind(Enum):
    """What labels are. none: no sample has one."""

    none = "none"
    number_of_class = "number_of_class"
    name = "name"
    one_hot = "one_hot"
    number = "number"


class LabelError(ValueError):
    """A label that names no class, and why."""


@dataclass
class Meaning:
    """What the labels of a set mean. said: that, and why, in part of a sentence.

    classes: names in the order of the labels, or None where nobody named them. numbers: the label of each
    name. limit: class numbers are below it. names_from: where the classes come from, for messages; "" for the
    labels themselves. place: the extension or the key of json members that holds the labels; None: the usual
    ones.
    """

    kind: Kind
    said: str
    classes: list[str] | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    limit: int = MAX_CLASSES
    names_from: str = ""
    place: str | None = None

    def resolve(self, labels: Labels) -> tuple[int, ...] | tuple[float, ...]:
        """The numbers of the classes; floats where labels are numbers to predict.

        LabelError, saying why, for a label that is neither.
        """
        if why := next((label.why for label in labels if isinstance(label, NoClass)), None):
            raise LabelError(why)
        if self.kind is Kind.number:
            return tuple(map(_number, labels))
        if self.kind is Kind.one_hot:
            if len(labels) != self.limit or not all(map(is_bit, labels)):
                raise LabelError(f"its label is not a list of {self.limit} times 0 or 1, as the others are")
            found = tuple(place for place, one in enumerate(labels) if one)
        else:
            found = tuple(map(self._class, labels))
        if len(set(found)) < len(found):
            bits = all(map(is_bit, labels))
            hint = "; if it is a list of 0 and 1 for each class, all must be of one length" if bits else ""
            raise LabelError(f"a label is listed twice{hint}")
        return found

    def _class(self, label: Value) -> int:
        if (known := self.numbers.get(name_of(label))) is not None:
            return known
        if not isinstance(label, int) or label < 0:
            nor = f", nor the name of one class in {self.names_from}" if self.names_from else ""
            advice = " (--numbers, if all are numbers to predict)" if _is_fraction(label) else ""
            raise LabelError(f"label {quoted(label)} is not an integer of 0 or more{nor}{advice}")
        if label >= MAX_CLASSES:
            raise LabelError(f"label {label} is more than {MAX_CLASSES:,} classes: labels count them from 0")
        if label >= self.limit and self.names_from:
            raise LabelError(f"label {label}, but {self.names_from} has {self.limit} classes")
        if label >= self.limit:
            raise LabelError(
                f"label {label} lies far above all others, which are below {self.limit} "
                "(if there are so many classes, say how many with --classes)"
            )
        if self.kind is Kind.name:
            raise LabelError(f"label {label} is no class in {self.names_from or 'this set'}")
        return label


def refuse(problems: Iterable[object], names_from: str = GIVEN) -> DataError:
    """The error for labels that name no class."""
    lines = list(map(str, problems))
    advice = "mend them, or leave them out with --allow-unlabelled"
    if names_from not in ("", GIVEN):
        advice += f", or take {names_from} away if it is not of these shards"
    if len(lines) == 1:
        return DataError(f"{lines[0]}: {advice.replace('them', 'it')}.")
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return DataError("\n  ".join([f"{len(lines)} labels are no class: {advice}.", *lines[:_SHOWN], *more]))


def check_numbers(classes: Sequence[str]) -> None:
    """UsageError if a number in shards could mean two of these classes: by its place, and by its name."""
    for label, name in enumerate(classes):
        if name.isascii() and name.isdigit() and name != str(label):
            raise UsageError(
                f"class {label} of --classes is called '{name}', so that a number in shards could mean its "
                "place or its name: if the place, put a classes.json with these names beside the shards "
                "and leave out --classes; if the name, index them with --classes N first, for the numbers "
                "0 to N - 1, and then pack them anew with these --classes."
            )


def known_classes(number: int, names: list[str] | None) -> Meaning:
    """The meaning of labels of which nothing but the classes is known: how many, and perhaps their names."""
    meaning = by_classes(tuple(names or ()), "this run", from_table=False)
    meaning.limit = number
    return meaning


def by_classes(classes: tuple[str, ...], names_from: str, from_table: bool) -> Meaning:
    """Labels of known classes: by name; by number too, unless (in a csv) the names are numbers themselves."""
    times = Counter(classes)
    numbers = {name: label for name, label in numbered(list(classes)).items() if times[name] == 1}
    named = any(name.isascii() and name.isdigit() for name in classes)
    if named and not from_table:  # in shards a number is the number of a class, as others read them
        numbers = {name: label for name, label in numbers.items() if not name.isdigit()}
    said = f"the {len(classes)} classes of {names_from}"
    if named and from_table:
        return Meaning(Kind.name, f"{said}, by name", list(classes), numbers, names_from=names_from)
    said += ", by number or name"
    return Meaning(Kind.number_of_class, said, list(classes), numbers, len(classes), names_from)


def kind_of(label: Value) -> str:
    """class: a whole number; padded: text of one with leading zeros; number: negative or a fraction; odd:
    NoClass; else text."""
    if isinstance(label, NoClass):
        return "odd"
    if isinstance(label, int):
        return "class"
    if label.isascii() and label.isdigit():
        return "padded"
    return "number" if is_number(label) else "text"


def _number(label: Value) -> float:
    if isinstance(label, NoClass) or (isinstance(label, str) and not is_number(label)):
        raise LabelError(f"label {quoted(label)} is not a number")
    if abs(float(label)) > MAX_NUMBER:
        raise LabelError(f"label {quoted(label)} is not a finite number of 32 bits")
    return float(label)


def _is_fraction(label: Value) -> bool:
    return kind_of(label) == "number" and not is_negative(label)


def is_negative(label: Value) -> bool:
    """Whether a label is a negative whole number."""
    return bool(_NEGATIVE.fullmatch(str(label)))


def is_bit(label: Value) -> bool:
    """Whether a label is the number 0 or 1."""
    return isinstance(label, int) and label in (0, 1)


def name_of(label: Value) -> str:
    """The label as the name of a class."""
    return plain_name(str(label))


def quoted(label: Value) -> str:
    """The label for messages: a text in quotes, a number as it is."""
    return f"'{label}'" if isinstance(label, str) else str(label)


def numbered(classes: list[str]) -> dict[str, int]:
    """The number of each class."""
    return {name: label for label, name in enumerate(classes)}
