"""Labels of samples: from the bytes of a cls or json member to numbers, strictly.

Whole numbers are classes. Fractions are numbers for a regression to predict. If any sample of a set has
a fraction, the labels of all samples are such numbers.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from data_tools.errors import DataError

NO_LABEL = -1
MAX_CLASSES = 1_000_000
_MAX_LABELS = 1024  # of one sample: the rows of all samples are as wide as the longest
_MAX_NUMBER = 3e38  # numbers are stored as float32
_DIGITS = re.compile(rb"[0-9]{1,18}")


def parse_cls(data: bytes) -> tuple[int, ...]:
    """The label in a cls member. ValueError, saying why, for anything but ASCII digits."""
    digits = data.strip(b" \t\r\n")
    if not _DIGITS.fullmatch(digits):  # int() alone would take +1, 1_0 and Arabic digits
        raise ValueError(f"label {digits[:40]!r} is not an integer of 0 or more")
    return (_class(int(digits)),)


def parse_json(data: bytes) -> tuple[int, ...] | tuple[float, ...] | None:
    """The "label" of a json member, a number or a list of numbers; None if it has no label.

    If one of them is a fraction (0.73, or 1.0), all are returned as floats, and may be negative.
    ValueError, saying why, for anything else.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("its json member is not valid JSON") from None
    label = content.get("label") if isinstance(content, dict) else None
    if label is None:
        return None
    labels = tuple(label) if isinstance(label, list) else (label,)
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"{len(labels)} labels are more than {_MAX_LABELS}")
    if any(isinstance(one, float) for one in labels):
        return _numbers(labels)
    for one in labels:
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 10**18:
            raise ValueError(f"label {str(one)[:40]!r} is not an integer of 0 or more")
        _class(one)
    if len(set(labels)) < len(labels):
        raise ValueError("a label is listed twice")
    return labels


def _class(label: int) -> int:
    if label >= MAX_CLASSES:
        raise ValueError(f"label {label} is more than {MAX_CLASSES:,} classes: labels count them from 0")
    return label


def _numbers(labels: tuple[Any, ...]) -> tuple[float, ...]:
    for one in labels:
        known = isinstance(one, int | float) and not isinstance(one, bool)
        if not known or not math.isfinite(one) or abs(one) > _MAX_NUMBER:
            raise ValueError(f"label {str(one)[:40]!r} is not a finite number")
    return tuple(map(float, labels))


def parse_classes(data: bytes, path: str) -> list[str]:
    """The class names of a classes.json, in the order of their labels; DataError naming `path`."""
    try:
        classes = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{path} must be a JSON list of class names in the order of the labels.")
    return classes
