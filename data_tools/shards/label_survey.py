"""Finds out what the labels of a set mean: counts their kinds and decides.

The majority decides, never a single sample. Only labels that somebody calls numbers are numbers to predict.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from data_tools.errors import DataError, UsageError
from data_tools.shards.class_names import alike, quoted_names
from data_tools.shards.label_meaning import (
    GIVEN,
    Kind,
    Meaning,
    by_classes,
    check_numbers,
    is_bit,
    is_negative,
    kind_of,
    name_of,
    numbered,
    quoted,
)
from data_tools.shards.labels import MAX_CLASSES, LabelRules, Labels, NoClass, Written, is_number

_SHOWN = 5
_MISSING = frozenset(("nan", "inf", "-inf", "null", "none", "na", "n/a", "<na>", "nil", "?", "-"))


class Survey:
    """Counts what kinds of labels a set has."""

    def __init__(self) -> None:
        self._samples: Counter[str] = Counter()
        self._example: dict[str, str] = {}  # a label of a kind, and where
        self._numbers: Counter[int] = Counter()
        self._names: set[str] = set()
        self._length: int | None = None  # of lists of 0 and 1; 0: not all labels are such lists
        self._several = 0  # samples with several labels
        self._written: set[Written] = set()

    def add(self, labels: Labels, place: str) -> None:
        """Count one sample; place: where it is, for messages."""
        kinds = {kind_of(label) for label in labels}
        kind = next(
            (kind for kind in ("odd", "text", "padded", "number", "class") if kind in kinds), "nothing"
        )
        self._samples[kind] += 1
        if kind not in self._example and labels:
            label = next(label for label in labels if kind_of(label) == kind)
            shown = label.why if isinstance(label, NoClass) else quoted(label)
            self._example[kind] = f"{shown} ({place})"
        self._several += len(labels) > 1
        for label in labels if kind != "odd" else ():
            if isinstance(label, int):
                self._numbers[label] += 1
                if isinstance(label, Written):
                    self._written.add(label)
            elif not is_negative(label):
                self._names.add(name_of(label))
        length = len(labels) if len(labels) > 1 and all(is_bit(label) for label in labels) else 0
        if kind in ("class", "nothing"):
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
        class: if 0 does not occur, the numbers are names. UsageError where only --numbers can be meant;
        DataError if there is no label that could be one.
        """
        if not self._samples:
            return Meaning(Kind.none, "so there are no labels, and 0 classes")
        if len(self._samples) == 1 and (odd := self._example.get("odd")):
            where = "--columns label=NAME" if from_table else "--label-key NAME"
            raise DataError(
                f"no label is a class, first {odd}: say with {where} where the labels are, or mend them."
            )
        meaning = self._decide(rules, names_from, from_table)
        if meaning.kind in (Kind.name, Kind.number_of_class):
            if self._written:
                some = [f"'{one.written}' is {one}" for one in sorted(self._written)[:_SHOWN]]
                meaning.said += f"; {', '.join(some)}{', ...' * (len(self._written) > _SHOWN)}"
            if self._several:
                meaning.said += f"; images of several classes: {self._several}"
            elif len(self._numbers) + len(self._names) == sum(self._samples.values()) > 2:
                meaning.said += "; every image has a label of its own, as if it were no class"
        if none := self._samples["nothing"]:
            meaning.said += f"; images of no class: {none}"
        return meaning

    def _decide(self, rules: LabelRules, names_from: str, from_table: bool) -> Meaning:
        if rules.numbers:
            return Meaning(Kind.number, "numbers to predict, as --numbers asks")
        if self._length:
            return self._one_hot(rules, names_from)
        rules = rules.naming(self._names)
        if rules.classes is not None:
            if self._numbers and not from_table and names_from == GIVEN:
                check_numbers(rules.classes)
            return by_classes(rules.classes, names_from, from_table)
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
                f"labels such as {self._example['text']} are {len(names):,} texts, so no classes: say with "
                "--label-key where the label is."
            )
        classes = sorted(names, key=str.encode)
        kind = "padded" if self._samples["padded"] else "text"
        said = f"text such as {self._example[kind]}, so class names in byte order: {len(classes)} classes"
        if kind == "text" and (numbers := sum(map(is_number, names))):
            said += f", {numbers} of which are numbers"
        if kind == "padded":
            said = f"numbers with leading zeros, which are kept as {said}"
        said += alike(names)
        if missing := [name for name in classes if name.casefold() in _MISSING]:
            said += f"; taken for classes, too: {quoted_names(missing)}"
        return Meaning(Kind.name, said, classes, numbered(classes))

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
                f"'{classes[0]}' is label 0: {len(classes)} classes"
            )
            return Meaning(Kind.name, said, classes, numbered(classes), limit)
        said = f"whole numbers, so class numbers {low} to {high}: {high + 1} classes"
        if empty := sorted(set(range(high + 1)) - set(numbers))[:1]:
            said += f", {high + 1 - len(numbers)} of them without an image (the first is {empty[0]})"
        if low == 1:
            said += "; if they count from 1, class 0 is an output that nothing trains"
        named = [str(number) for number in range(high + 1)] if from_table else None
        return Meaning(Kind.number_of_class, said, named, limit=limit)


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


def _listed(classes: tuple[str, ...] | None) -> list[str] | None:
    return None if classes is None else list(classes)
