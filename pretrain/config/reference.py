"""All settings with their defaults, ranges and meanings: for --help and docs/configuration.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from .limits import Limit, limit_of


@dataclass(frozen=True)
class Setting:
    """default: as one writes it. allowed: the range or the choices. meaning: the comment in the schema."""

    key: str
    default: str
    allowed: str
    meaning: str

    def __str__(self) -> str:
        return f"  {self.key}={self.default}  ({self.allowed})"


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """All keys of a dataclass and of the dataclasses in it, in the order of the schema."""
    hints, comments = get_type_hints(schema), _comments(schema)
    for item in fields(schema):
        key, hint = prefix + item.name, hints[item.name]
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if inner is not None:
            yield from settings(inner, f"{key}.")  # type: ignore[arg-type]  # is_dataclass: also of objects
        else:
            yield Setting(key, _written(item), _allowed(hint, limit_of(item)), comments.get(item.name, ""))


def help_text(schema: type) -> str:
    """The settings, a line each, for the end of --help."""
    return "\n".join(["settings, with their defaults (docs/configuration.md):", *map(str, settings(schema))])


def table(schema: type) -> str:
    """The settings as a table in Markdown."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for one in settings(schema):
        cells = (f"`{one.key}`", f"`{one.default}`" if one.default else "", one.allowed, one.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _comments(schema: type) -> dict[str, str]:
    """The comment behind or above each field, also of those that the class inherits."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if comment := re.match(r"    # (.*)", line):
                above.append(comment[1])
            elif field := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
                found[field[1]], above = " ".join([*above, field[2] or ""]).strip(), []
            else:
                above = []
    return found


def _written(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(hint: Any, limit: Limit) -> str:
    if hint is Any:
        return "text or a list"
    kind = str(hint) if get_args(hint) else hint.__name__
    if "bool" in kind:
        words = "true or false"
    elif limit.numeric:
        words = f"{'whole numbers' if 'int' in kind else 'numbers'}, {limit}"
        if "list" not in kind and "tuple" not in kind:
            words = words.replace("numbers", "number", 1)
    else:
        words = str(limit) if limit != Limit() else "texts" if "list" in kind else "text"
    return words + (", or null" if "None" in kind else "")
