"""The label of one sample as it is written in a cls or json member, or in a cell of a csv.

What it means is decided for a whole set: see data_tools/shards/label_survey.py.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from dataclasses import dataclass

from data_tools.shards.class_names import plain_name

NO_LABEL = -1
MAX_CLASSES = 1_000_000
_MAX_LABELS = 1024  # of one sample: the rows of all samples are as wide as the longest
MAX_NUMBER = 3e38  # numbers are stored as float32
_MAX_NAME = 256
_WHOLE = re.compile("0|[1-9][0-9]{0,99}")
_DIGITS = re.compile("[0-9]{1,18}")

# A whole number, a number with a fraction, or text.
Value = int | float | str
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
    """What somebody says about the labels of a set.

    key: of the label: the extension of a member, or a key of the json member; None: found by itself.
    classes: the names, in the order of the labels. numbers: labels are numbers to predict.
    allow_unlabelled: a sample whose label is no class is left out, and is no error.
    """

    key: str | None = None
    classes: tuple[str, ...] | None = None
    numbers: bool = False
    allow_unlabelled: bool = False


NO_RULES = LabelRules()


def parse_text(text: str) -> Value:
    """A label that is written as text: digits without leading zeros are a number, all else is text.

    ValueError, saying why, for what can be neither a number nor the name of a class.
    """
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    name = plain_name(text)
    if not name or len(name) > _MAX_NAME or any(unicodedata.category(char) == "Cc" for char in name):
        raise ValueError(f"label '{name[:40]}' is not an integer of 0 or more, nor the name of a class")
    return sys.intern(name)  # one object for all samples of a class


def parse_cls(data: bytes) -> Labels:
    """The label in a cls member, or in another member of text. ValueError as parse_text()."""
    text = data.decode("utf-8", "surrogateescape").strip(" \t\r\n")
    if _DIGITS.fullmatch(text):  # 007 is 7, as webdataset's decoder reads it
        return (int(text),)
    return (parse_text(text),)


def parse_json(data: bytes, key: str | None = None) -> dict[str, Labels]:
    """The labels of a json member by their keys: at "label", else all of OTHER_KEYS; or only at `key`.

    ValueError, saying why, for what can be neither numbers nor names of classes.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its json member is not valid JSON") from None
    if not isinstance(content, dict):
        return {}
    usual = (LABEL,) if content.get(LABEL) is not None else OTHER_KEYS
    keys = usual if key is None else (key,)
    found = {}
    for name in keys:
        if content.get(name) is not None:
            try:
                found[name] = _listed(content[name])
            except ValueError:
                if keys is not OTHER_KEYS:  # under these names there may be anything
                    raise
    return found


def _listed(label: object) -> Labels:
    labels = label if isinstance(label, list) else [label]
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"{len(labels)} labels are more than {_MAX_LABELS}")
    return tuple(_value(one) for one in labels)


def _value(one: object) -> Value:
    if isinstance(one, str):
        return parse_text(one)
    if isinstance(one, bool) or not isinstance(one, int | float):
        raise ValueError(f"label '{str(one)[:40]}' is not an integer of 0 or more, nor the name of a class")
    if abs(one) > MAX_NUMBER or not math.isfinite(one):
        raise ValueError(f"label '{str(one)[:40]}' is not a finite number")
    return one
