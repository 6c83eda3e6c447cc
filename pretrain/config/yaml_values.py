"""YAML whose values are what the schema says, and not what YAML 1.1 takes them for.

YAML reads 0123 as 83, 12:30 as 750 and yes as true. Here the text of a scalar stays as it is written where
the schema wants a text, and numbers, true and false are only what looks like them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml

from data_tools.errors import UsageError, without_secrets

from .keys import check_key, known_keys

_TAG = "tag:yaml.org,2002:"
_TAGS = ("null", "bool", "int", "float", "str", "timestamp", "value", "merge", "map", "seq", "")
_WHOLE = r"[-+]?(0|[1-9][0-9_]*)"
_NUMBER = rf"({_WHOLE}(\.[0-9_]*)?|[-+]?\.[0-9_]+)([eE][-+]?[0-9]+)?"
_SCALARS: dict[object, tuple[str, Callable[[str], object], str]] = {
    int: (_WHOLE, int, "a whole number"),
    float: (_NUMBER, float, "a number"),
    bool: ("true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true", "true or false"),
}
_MISSING = "???"  # OmegaConf takes it for nothing, and would keep the value that was there before
_SHOWN = 60  # characters of a wrong value


def parse_recipe(text: str, schema: type, where: str) -> dict[str, Any]:
    """The values of a recipe, a YAML text; where: its file. Raises UsageError."""
    return _Reader(where, known_keys(schema)).read(text, schema, "") or {}


def parse_value(text: str, key: str, keys: dict[str, Any]) -> Any:
    """The value of key=text on a command line; keys: those of `known_keys`. Raises UsageError.

    A text stays as it is. So does one where a list or a mapping is possible, unless it looks like one, stands
    in quotes, or is null.
    """
    hint = keys[key]
    is_text = hint is str or (hint is Any and not re.match(r"\[|\{.*: |null$|(['\"]).*\1$", text))
    if is_text and text != _MISSING:
        return text
    return _Reader("", keys).read(text, hint, key)


@dataclass(frozen=True)
class _Reader:
    """where: the recipe's file; empty for the command line. keys: of `known_keys`."""

    where: str
    keys: dict[str, Any]

    def read(self, text: str, hint: Any, key: str) -> Any:
        """The value of a text for a field of the type `hint`, or as a dict for a dataclass."""
        why = "its lists and mappings hold themselves, or lie too deep in each other"
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            if node is None and not key:
                return None
            return self._value(node or yaml.ScalarNode("", ""), hint, key)
        except yaml.YAMLError as error:
            for mark in filter(
                None, (getattr(error, f"{kind}_mark", None) for kind in ("context", "problem"))
            ):
                mark.buffer = None  # it would be quoted, from the middle of a password on
            why = f"not YAML: {' '.join(str(error).split())}"
        except RecursionError:
            pass
        raise UsageError(f"{self.where or f'{key}={_shown(text)}'}: {why}")

    def _value(self, node: yaml.Node, hint: Any, key: str) -> Any:
        """The value of `node`. An interpolation of OmegaConf, ${...}, stays as it is."""
        optional = hint is Any or NoneType in get_args(hint)
        if NoneType in get_args(hint):
            hint = next(part for part in get_args(hint) if part is not NoneType)
        if node.tag.removeprefix(_TAG) not in _TAGS:
            self._refuse(node, key, f"{node.tag} is not for recipes")
        if isinstance(node, yaml.ScalarNode):
            null = node.style is None and node.tag == f"{_TAG}null"
            return None if null and optional else self._scalar(node, hint, key, null)
        if isinstance(node, yaml.SequenceNode):
            return self._list(node, hint, key)
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, hint, key)

    def _scalar(self, node: yaml.ScalarNode, hint: Any, key: str, null: bool) -> object:
        text = node.value
        if text == _MISSING:
            self._refuse(node, key, f"{_MISSING} is no value: give another, or leave the key out")
        if hint in _SCALARS and "${" not in text:
            pattern, convert, _ = _SCALARS[hint]
            try:
                if re.fullmatch(pattern, text):
                    return convert(text)
            except ValueError:  # such as 1__0
                pass
            self._refuse(node, key, f"it must be {_words(hint)}")
        if is_dataclass(hint) or (get_origin(hint) and "${" not in text):
            self._refuse(node, key, f"it must be {_words(hint)}")
        if null and text:
            self._refuse(node, key, f"it must be a text; if '{text}' is meant, write it in quotes")
        return text

    def _list(self, node: yaml.SequenceNode, hint: Any, key: str) -> list[Any]:
        kinds = get_args(hint)
        if hint is not Any and not kinds:
            self._refuse(node, key, f"it must be {_words(hint)}, not a list")
        if get_origin(hint) is tuple and len(kinds) != len(node.value):
            self._refuse(node, key, f"it must be a list of {len(kinds)}")
        return [self._value(child, kinds[0] if kinds else Any, key) for child in node.value]

    def _mapping(self, node: yaml.MappingNode, hint: Any, key: str) -> dict[str, Any]:
        if hint is not Any and not is_dataclass(hint):
            self._refuse(node, key, f"it must be {_words(hint)}, not a mapping")
        names = [child.value for child, _ in node.value if isinstance(child, yaml.ScalarNode)]
        if len(names) < len(node.value):
            self._refuse(node, key, "a key must be a word")
        if twice := next((name for name in names if names.count(name) > 1), None):
            self._refuse(node, key, f"the key {twice} stands there twice")
        yaml.SafeLoader("").flatten_mapping(node)  # what stands under <<
        group = is_dataclass(hint)
        hints = get_type_hints(hint) if group else {"weight": float}  # of a source in data.train
        found = {}
        for child, value in node.value:
            full = f"{key}.{child.value}" if key else child.value
            if group and child.value not in hints:
                inside = value.value[:1] if isinstance(value, yaml.MappingNode) else []
                check_key(
                    ".".join([full, *(str(first.value) for first, _ in inside)]),
                    self.keys,
                    self._place(child),
                )
            if group and isinstance(value, yaml.ScalarNode):
                check_key(full, self.keys, self._place(child))
            found[child.value] = self._value(value, hints.get(child.value, Any), full)
        return found

    def _place(self, node: yaml.Node) -> str:
        return f"{self.where}, line {node.start_mark.line + 1}" if self.where else "command line"

    def _refuse(self, node: yaml.Node, key: str, why: str) -> NoReturn:
        shown = _shown(node.value if isinstance(node, yaml.ScalarNode) else "...")
        raise UsageError(
            (f"{self._place(node)}: " if self.where else "") + (f"{key}={shown}: " if key else "") + why
        )


def _shown(text: str) -> str:
    text = without_secrets(text)  # before it is cut, which may be within a password
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _words(hint: Any) -> str:
    """What a field of this type must be."""
    if is_dataclass(hint):
        return "a mapping of keys to values"
    return _SCALARS[hint][2] if hint in _SCALARS else "a text" if hint is str else "a list, such as [a, b]"
