"""The keys that a schema knows, and the nearest right one to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

from omegaconf import DictConfig

from data_tools.errors import UsageError


def known_keys(schema: type, prefix: str = "") -> dict[str, bool]:
    """Every key of the dataclass `schema`, with a dot between group and key; True where it is a group."""
    keys: dict[str, bool] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        name, kind = prefix + item.name, hints[item.name]
        group = is_dataclass(kind)
        keys[name] = group
        for inner in (kind, *get_args(kind)):  # a group that may be null is a key too
            if isinstance(inner, type) and is_dataclass(inner):
                keys.update(known_keys(inner, name + "."))
    return keys


def leaf_keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Every key of a recipe that is not a group, with dots as in `known_keys`."""
    leaves = []
    for key in node:
        name = prefix + str(key)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            leaves += leaf_keys(child, name + ".") or [name]
        else:
            leaves.append(name)
    return leaves


def check_key(key: str, keys: dict[str, bool], where: str) -> None:
    """Raises UsageError unless `key` is in `keys` (see `known_keys`) and not a group.

    where: the place that the message names.
    """
    if keys.get(key) is False:
        return
    if keys.get(key):
        inside = ", ".join(k for k in keys if k.startswith(key + "."))
        raise UsageError(f"{where}: {key} is a group of keys; set one of {inside}")
    leaves = [k for k, group in keys.items() if not group]
    raise UsageError(f"{where}: unknown key {key}{nearest(key, leaves)}")


def nearest(word: object, words: Iterable[str]) -> str:
    """The text "; did you mean X?", X being the one of `words` most like `word`; empty if none is like it."""
    words = list(words)
    last = {w.rsplit(".", 1)[-1]: w for w in reversed(words)}
    close = difflib.get_close_matches(str(word), words, 1, 0.5) or [
        last[w] for w in difflib.get_close_matches(str(word).rsplit(".", 1)[-1], list(last), 1, 0.6)
    ]
    return f"; did you mean {close[0]}?" if close else ""
