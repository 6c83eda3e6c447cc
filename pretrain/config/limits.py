"""Which values a setting may have: it stands beside each field of the schema, and is checked from there."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from data_tools.errors import UsageError

from .keys import nearest

LIMIT = "limit"  # of the metadata of a field
LONGEST_NAME = (
    128  # characters, of which each may take four bytes of a file system's 255; the limit of W&B too
)


@dataclass(frozen=True)
class Limit:
    """The numbers, choices or names that a setting may have; of a list or a tuple each element.

    forbidden: the characters that a name may not hold; None: it is no name.
    """

    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    choices: tuple[str, ...] = ()
    forbidden: str | None = None

    @property
    def numeric(self) -> bool:
        """Whether it is about numbers."""
        return any(map(math.isfinite, (self.above, self.at_least, self.below, self.at_most)))

    def __str__(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.forbidden is not None:
            signs = f" or {' '.join(self.forbidden)}" if self.forbidden else ""
            return (
                f"a name of at most {LONGEST_NAME} characters (255 bytes), without blanks at its ends, "
                f"control characters{signs}"
            )
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {_short(self.at_least)}"
        high = f"below {self.below:g}" if self.below < math.inf else f"at most {_short(self.at_most)}"
        return f"{low} and {high}"

    def allows(self, value: object) -> bool:
        """Whether a setting may have this value, which is no list."""
        if self.forbidden is not None:
            return isinstance(value, str) and self._is_name(value)
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return not self.numeric
        return self.above < value < self.below and self.at_least <= value <= self.at_most

    def _is_name(self, text: str) -> bool:
        return (
            0 < len(text) <= LONGEST_NAME
            and len(text.encode(errors="replace")) <= 255
            and text == text.strip()
            and text.isprintable()
            and text not in (".", "..")
            and not set(text) & set(self.forbidden or "")
        )


def number(default: Any, **limits: float) -> Any:
    """A field of a number, or of a list or tuple of numbers; limits: the bounds of `Limit`."""
    return _field(default, Limit(**limits))  # type: ignore[arg-type]  # mypy takes any keyword for any field


def count(default: Any, at_least: int = 0, at_most: int = 10**9) -> Any:
    """A field of a whole number, or of a list of them."""
    return _field(default, Limit(at_least=at_least, at_most=at_most))


def choice(default: str, *others: str) -> Any:
    """A field of one of the given words."""
    return _field(default, Limit(choices=tuple(dict.fromkeys((default, *others)))))


def simple_name(default: str, forbidden: str) -> Any:
    """A field of a name without the forbidden characters; it is filled in before it is checked."""
    return _field(default, Limit(forbidden=forbidden))


def limit_of(item: Field[Any]) -> Limit:
    """What stands beside a field of the schema."""
    return item.metadata.get(LIMIT, Limit())


def check_limits(config: Any, prefix: str = "") -> None:
    """Raises UsageError for a value, of a dataclass or of one in it, that its field does not allow.

    prefix: what stands before the keys. No text has control characters, and no number is NaN or infinite.
    """
    for item in fields(config):
        key, value, limit = prefix + item.name, getattr(config, item.name), limit_of(item)
        if is_dataclass(value):
            check_limits(value, f"{key}.")
            continue
        shown = str(list(value) if isinstance(value, tuple) else value)
        for part in _parts(value):
            if isinstance(part, str) and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in part):
                raise UsageError(f"{key}={shown}: it may not hold control characters such as line breaks")
            if isinstance(part, float) and not math.isfinite(part):
                raise UsageError(f"{key}={shown}: it must be a finite number")
            if not limit.allows(part):
                each = "each " if isinstance(value, tuple | list) else ""
                hint = nearest(part, limit.choices) if limit.choices else ""
                raise UsageError(f"{key}={shown}: {each or 'it '}must be {limit}{hint}")


def _field(default: Any, limit: Limit) -> Any:
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={LIMIT: limit})
    return field(default=default, metadata={LIMIT: limit})


def _parts(value: object) -> Iterator[object]:
    """The values in lists and mappings, and in those in them; None, which stands for nothing, is none."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    elif value is not None:
        yield value


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
