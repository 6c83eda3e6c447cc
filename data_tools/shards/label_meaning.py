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
from itertools import pairwise

from data_tools.errors import DataError, UsageError
from data_tools.shards.labels import MAX_CLASSES, MAX_NUMBER, LabelRules, Labels, Value
from data_tools.shards.names import plain_name

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
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
        if self.kind is Kind.number:
            return tuple(map(_number, labels))
        if self.kind is Kind.one_hot:
            found = tuple(place for place, one in enumerate(labels) if one)
        else:
            found = tuple(map(self._class, labels))
        if len(set(found)) < len(found):
            raise LabelError("a label is listed twice")
        return found

    def _class(self, label: Value) -> int:
        if (known := self.numbers.get(_name(label))) is not None:
            return known
        if not isinstance(label, int) or label < 0:
            nor = f", nor the name of one class in {self.names_from}" if self.names_from else ""
            advice = " (--numbers, if all are numbers to predict)" if _is_fraction(label) else ""
            raise LabelError(f"label {label!r} is not an integer of 0 or more{nor}{advice}")
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


class Survey:
    """Counts what kinds of labels a set has."""

    def __init__(self) -> None:
        self._samples: Counter[str] = Counter()
        self._example: dict[str, str] = {}  # a label of a kind, and where
        self._numbers: Counter[int] = Counter()
        self._names: set[str] = set()
        self._length: int | None = None  # of lists of 0 and 1; 0: not all labels are such lists

    def add(self, labels: Labels, place: str) -> None:
        """Count one sample; place: where it is, for messages."""
        kinds = {_kind(label) for label in labels}
        kind = next((kind for kind in ("text", "padded", "number", "class") if kind in kinds), "nothing")
        self._samples[kind] += 1
        if kind not in self._example and labels:
            label = next(label for label in labels if _kind(label) == kind)
            self._example[kind] = f"{label!r} ({place})"
        for label in labels:
            if isinstance(label, int) and label >= 0:
                self._numbers[label] += 1
            elif _kind(label) != "number" or not _NEGATIVE.fullmatch(str(label)):
                self._names.add(_name(label))
        length = len(labels) if len(labels) > 1 and all(_is_bit(label) for label in labels) else 0
        self._length = length if self._length in (None, length) else 0

    def add_numbers(self, numbers: dict[int, int]) -> None:
        """Count samples with one class number each; numbers: how many samples each number has."""
        if numbers:
            self._numbers.update(numbers)
            self._samples["class"] += sum(numbers.values())
            self._length = 0

    def decide(self, rules: LabelRules, names_from: str, *, from_table: bool = False) -> Meaning:
        """What the labels mean.

        names_from: where rules.classes come from. from_table: of a csv, where nobody fixed the number of a
        class: if 0 does not occur, the numbers are names. UsageError where only --numbers can be meant.
        """
        if not self._samples:
            return Meaning(Kind.none, "so there are no labels, and 0 classes")
        if rules.numbers:
            return Meaning(Kind.number, "numbers to predict, as --numbers asks")
        if self._length:
            return self._one_hot(rules, names_from)
        if rules.classes is not None:
            if self._numbers and not from_table and names_from == GIVEN:
                check_numbers(rules.classes)
            return _by_classes(rules.classes, names_from, from_table)
        count = self._samples
        if count["number"] * 2 > sum(count.values()):
            raise UsageError(
                f"labels such as {self._example['number']} are numbers, but no classes: give --numbers if "
                "they are numbers to predict; classes are whole numbers from 0 or names."
            )
        if count["padded"] or count["text"] >= count["class"] > 0 or (count["text"] and not count["class"]):
            return self._by_name()
        return self._by_number(from_table)

    def _one_hot(self, rules: LabelRules, names_from: str) -> Meaning:
        length = self._length or 0
        if rules.classes and len(rules.classes) != length:
            raise DataError(
                f"the labels are lists of 0 and 1 of length {length}, but {names_from} has "
                f"{len(rules.classes)} classes: give the classes that belong to them."
            )
        said = f"lists of 0 and 1, all of length {length}, so each place is a class: {length} classes"
        classes = _listed(rules.classes) or [str(place) for place in range(length)]
        return Meaning(Kind.one_hot, said, classes, limit=length, names_from=names_from)

    def _by_name(self) -> Meaning:
        names = self._names | {str(number) for number in self._numbers}
        if len(names) > MAX_CLASSES:
            raise UsageError(
                f"labels such as {self._example['text']} are {len(names):,} different texts, so no classes: say "
                "with --label-key where the label is."
            )
        classes = sorted(names, key=str.encode)
        kind = "padded" if self._samples["padded"] else "text"
        said = f"text such as {self._example[kind]}, so class names in byte order: {len(classes)} classes"
        if kind == "text" and self._numbers:
            said += f", {len(self._numbers)} of which are numbers"
        if kind == "padded":
            same = Counter(int(name) for name in names if name.isascii() and name.isdigit())
            twice = [number for number, times in same.items() if times > 1]
            alike = sorted(name for name in names if name.isdigit() and int(name) in twice[:1])
            said = f"numbers with leading zeros, which are kept as {said}"
            said += f"; {' and '.join(map(repr, alike))} are different classes" if alike else ""
        return Meaning(Kind.name, said, classes, _numbered(classes))

    def _by_number(self, from_table: bool) -> Meaning:
        numbers = sorted(self._numbers)
        if not numbers:
            return Meaning(Kind.number_of_class, "lists without any class")
        far = _far_above(numbers)
        limit = MAX_CLASSES if far is None else far
        if not from_table or numbers[0] == 0:
            far = limit
        numbers = [number for number in numbers if far is None or number < far]
        if not numbers:
            return Meaning(Kind.number_of_class, "whole numbers that are too large for classes")
        low, high = numbers[0], numbers[-1]
        if from_table and low > 0:
            classes = [str(number) for number in numbers]
            said = (
                f"whole numbers {low} to {high} without 0, so they are taken as names, and class "
                f"{classes[0]!r} is label 0: {len(classes)} classes"
            )
            return Meaning(Kind.name, said, classes, _numbered(classes), limit)
        said = f"whole numbers, so class numbers {low} to {high}: {high + 1} classes"
        if empty := sorted(set(range(high + 1)) - set(numbers))[:1]:
            said += f", {high + 1 - len(numbers)} of them without an image (the first is {empty[0]})"
        if low == 1:
            said += "; if they count from 1, class 0 is an output that nothing trains"
        named = [str(number) for number in range(high + 1)] if from_table else None
        return Meaning(Kind.number_of_class, said, named, limit=limit)


def refuse(problems: Iterable[object]) -> DataError:
    """The error for labels that name no class."""
    lines = list(map(str, problems))
    advice = "mend them, or leave them out with --allow-unlabelled"
    if len(lines) == 1:
        return DataError(f"{lines[0]}: {advice.replace('them', 'it')}.")
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return DataError("\n  ".join([f"{len(lines)} labels are no class: {advice}.", *lines[:_SHOWN], *more]))


def check_numbers(classes: Sequence[str]) -> None:
    """UsageError if a number in shards could mean two of these classes: by its place, and by its name."""
    for label, name in enumerate(classes):
        if name.isascii() and name.isdigit() and name != str(label):
            raise UsageError(
                f"class {label} of --classes is called {name!r}, so that a number in shards could mean its place "
                "or its name: give a classes.json with other names."
            )


def known_classes(number: int, names: list[str] | None) -> Meaning:
    """The meaning of labels of which nothing but the classes is known: how many, and perhaps their names."""
    meaning = _by_classes(tuple(names or ()), "this run", from_table=False)
    meaning.limit = number
    return meaning


def _by_classes(classes: tuple[str, ...], names_from: str, from_table: bool) -> Meaning:
    """Labels of known classes: by name; by number too, unless (in a csv) the names are numbers themselves."""
    times = Counter(classes)
    numbers = {name: label for name, label in _numbered(list(classes)).items() if times[name] == 1}
    named = any(name.isascii() and name.isdigit() for name in classes)
    if named and not from_table:  # in shards a number is the number of a class, as others read them
        numbers = {name: label for name, label in numbers.items() if not name.isdigit()}
    said = f"the {len(classes)} classes of {names_from}"
    if named and from_table:
        return Meaning(Kind.name, f"{said}, by name", list(classes), numbers, names_from=names_from)
    said += ", by number or name"
    return Meaning(Kind.number_of_class, said, list(classes), numbers, len(classes), names_from)


def _far_above(numbers: list[int]) -> int | None:
    """Where a few numbers begin that lie far above all others, as 1000 does beside 0 to 3; else None.

    That is behind a hole larger than everything below it, if at least half of the numbers below occur and
    at most half as many lie above.
    """
    for below, (number, following) in enumerate(pairwise(numbers), 1):
        filled, hole = below * 2 > number, following - number - 1
        if filled and hole > max(10, number + 1) and (len(numbers) - below) * 2 <= below:
            return number + 1
    return None


def _kind(label: Value) -> str:
    """class: a whole number; padded: one with leading zeros; number: negative or a fraction; else text."""
    if isinstance(label, int):
        return "class" if label >= 0 else "number"
    if isinstance(label, float):
        return "number"
    if label.isascii() and label.isdigit():
        return "padded"
    return "number" if _NUMBER.fullmatch(label) else "text"


def _number(label: Value) -> float:
    if isinstance(label, str) and not _NUMBER.fullmatch(label):
        raise LabelError(f"label {label!r} is not a number")
    if abs(float(label)) > MAX_NUMBER:
        raise LabelError(f"label {label!r} is not a finite number of 32 bits")
    return float(label)


def _is_fraction(label: Value) -> bool:
    return _kind(label) == "number" and not _NEGATIVE.fullmatch(str(label))


def _is_bit(label: Value) -> bool:
    return not isinstance(label, str) and label in (0, 1)


def _name(label: Value) -> str:
    return plain_name(str(label))


def _numbered(classes: list[str]) -> dict[str, int]:
    return {name: label for label, name in enumerate(classes)}


def _listed(classes: tuple[str, ...] | None) -> list[str] | None:
    return None if classes is None else list(classes)
