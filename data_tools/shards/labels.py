"""The label of one sample as it is written in a cls or json member, or in a cell of a csv.

What it means is decided for a whole set: see data_tools/shards/label_survey.py.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from data_tools.shards.class_names import plain_name

NO_LABEL = -1
MAX_CLASSES = 1_000_000
_MAX_LABELS = 1024  # of one sample: the rows of all samples are as wide as the longest
MAX_NUMBER = 3e38  # numbers are stored as float32
_MAX_NAME = 256
_WHOLE = re.compile("0|[1-9][0-9]{0,99}")
_DIGITS = re.compile("[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,50}\.?[0-9]{0,50}|\.[0-9]{1,50})([eE][+-]?[0-9]{1,2})?")
_POINT_ZERO = re.compile(r"([0-9]{1,15})\.0*")
_BETWEEN = re.compile(r",?\s+|,")  # two numbers


class Written(int):
    """A whole number that is written otherwise, such as 007 or 2.0. written: how."""

    written = ""


@dataclass(frozen=True)
class NoClass:
    """What stands in the place of a label and is none. why: in words, with what is written there."""

    why: str


# A whole number of 0 or more, text (other numbers, too), or none of these.
Value = int | str | NoClass
Labels = tuple[Value, ...]

# The keys of a json member that hold a label. "label" wins; of the others a set may have one.
LABEL = "label"
OTHER_KEYS = (
    *("labels", "label_id", "label_idx", "label_name", "class", "class_id", "class_idx", "class_index"),
    *("class_name", "classname", "class_label", "cls", "category", "category_id", "category_name"),
    *("target", "fine_label"),
)


@dataclass(frozen=True)
class LabelRules:
    """What somebody says about a set and its labels.

    key: of the label: the extension of a member, or a key of the json member; None: found by itself.
    classes: the names, in the order of the labels; other_names: further lists of these.
    numbers: labels are numbers to predict. allow_unlabelled: a sample whose label is no class is left out,
    and is no error. one_set: shards of train and val and the like are one set.
    """

    key: str | None = None
    classes: tuple[str, ...] | None = None
    numbers: bool = False
    allow_unlabelled: bool = False
    one_set: bool = False
    other_names: tuple[tuple[str, ...], ...] = ()

    def naming(self, labels: Iterable[str]) -> LabelRules:
        """The rules with that list of names as classes, the first if in doubt, which names most labels."""
        if not self.other_names or self.classes is None:
            return self
        found = set(labels)
        best = max((self.classes, *self.other_names), key=lambda names: len(found.intersection(names)))
        return replace(self, classes=best)


NO_RULES = LabelRules()


def is_number(text: str) -> bool:
    """Whether a text is a number in digits."""
    return bool(_NUMBER.fullmatch(text))


def parse_text(text: str) -> Labels:
    """The labels in a text: one, or those of a list such as [0, 2], (0, 2), ['a', 'b'] or, by numpy, [0 2].

    Digits without leading zeros are a number, all else is text.
    """
    text = text.strip().removeprefix("\ufeff").strip()
    if _WHOLE.fullmatch(text):  # nearly all are
        return (int(text),)
    inner = text[1:-1].strip().rstrip(",")
    if text[:1] + text[-1:] in ("[]", "()"):
        for written in (inner, inner.replace("'", '"')):
            with suppress(ValueError, RecursionError):
                return _listed(json.loads(f"[{written}]"))
        if all(map(is_number, words := _BETWEEN.split(inner))):
            return _listed(words)
    if len(words := _BETWEEN.split(text)) > 1 and all(map(is_number, words)):
        return (
            NoClass(
                f"label '{text[:40]}' may be several labels, or one with a comma for its point: write "
                "[0, 5] or 0.5, or give --label-separator for a csv"
            ),
        )
    return (_one(text),)


def parse_cls(data: bytes) -> Labels:
    """The labels in a cls member, or in another member of text; as for webdataset's decoder, 007 is 7."""
    labels = parse_text(data.decode("utf-8", "surrogateescape"))
    return tuple(
        _written(int(one), one) if isinstance(one, str) and _DIGITS.fullmatch(one) else one for one in labels
    )


def parse_json(data: bytes, key: str | None = None) -> dict[str, Labels]:
    """The labels of a json member by their keys: at "label", else all of OTHER_KEYS; or only at `key`.

    ValueError, saying why, for what is no JSON.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its json member is not valid JSON") from None
    if not isinstance(content, dict):  # it may be the label itself
        labels = _listed(content)
        odd = key or not labels or any(isinstance(label, NoClass) for label in labels)
        return {} if odd else {LABEL: labels}
    usual = (LABEL,) if _at(content, LABEL) is not None else OTHER_KEYS
    keys = usual if key is None else (key,)
    found = {}
    for name in keys:
        if (label := _at(content, name)) is not None:
            labels = _listed(label)
            # under OTHER_KEYS there may be anything
            if keys is not OTHER_KEYS or not any(isinstance(label, NoClass) for label in labels):
                found[name] = labels
    return found


def _at(content: object, key: str) -> object:
    """What stands at a key, perhaps in other case, or at label.id below the key label."""
    if not isinstance(content, dict):
        return None
    same = [key] if key in content else [name for name in content if name.casefold() == key.casefold()]
    if len(same) == 1:
        return content[same[0]]
    first, dot, rest = key.partition(".")
    return _at(content.get(first), rest) if dot else None


def _listed(label: object) -> Labels:
    if isinstance(label, str):
        return parse_text(label)
    labels = label if isinstance(label, list) else [label]
    if len(labels) > _MAX_LABELS:
        return (NoClass(f"{len(labels)} labels are more than {_MAX_LABELS}"),)
    if len(labels) > 1 and all(isinstance(one, bool) for one in labels):
        return tuple(map(int, labels))
    return tuple(map(_value, labels))


def _value(one: object) -> Value:
    """A label as JSON has it. It counts as if it were written as text, if it is no dict or the like."""
    if type(one) is int and 0 <= one < 10**100:
        return one
    label = _one(one if isinstance(one, str) else json.dumps(one))
    odd = isinstance(label, str) and not isinstance(one, str | bool) and not is_number(label)
    return NoClass(_no_name(str(label))) if odd else label


def _one(text: str) -> Value:
    """One label that is written as text."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if whole := _POINT_ZERO.fullmatch(text):
        return _written(int(whole[1]), text)
    if not text:
        return NoClass("the label is empty")
    name = plain_name(text)
    too_long = len(name) > (100 if name.isdigit() else _MAX_NAME)
    if too_long or any(unicodedata.category(char) == "Cc" for char in name):
        return NoClass(_no_name(name))
    return sys.intern(name)  # one object for all samples of a class


def _no_name(text: str) -> str:
    return f"label '{text[:40]}' is not an integer of 0 or more, nor the name of a class"


@lru_cache(1 << 16)
def _written(number: int, text: str) -> Written:
    label = Written(number)
    label.written = text
    return label
