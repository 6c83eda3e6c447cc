"""The keys of a configuration: which there are, and a clear word about one that is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from omegaconf import DictConfig

from data_tools.errors import UsageError


def known_keys(schema: type, prefix: str = "") -> dict[str, bool]:
    """Every key of the schema, dotted; True where it is a group."""
    keys: dict[str, bool] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        name, kind = prefix + item.name, hints[item.name]
        group = is_dataclass(kind)
        keys[name] = group
        if group:
            keys.update(known_keys(kind, name + "."))  # type: ignore[arg-type]
    return keys


def leaf_keys(node: DictConfig, prefix: str = "") -> list[str]:
    """The dotted keys of `node` that hold values."""
    leaves = []
    for key in node:
        name = f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            leaves += leaf_keys(child, name + ".") or [name]
        else:
            leaves.append(name)
    return leaves


def check_key(key: str, keys: dict[str, bool], where: str) -> None:
    """Raises UsageError unless `key` is one of `keys` and not a group."""
    if keys.get(key) is False:
        return
    if keys.get(key):
        inside = ", ".join(k for k in keys if k.startswith(key + "."))
        raise UsageError(f"{where}: {key} is a group of keys; set one of {inside}")
    leaves = [k for k, group in keys.items() if not group]
    raise UsageError(f"{where}: unknown key {key}{nearest(key, leaves)}")


def nearest(word: object, words: Iterable[str]) -> str:
    """A question with the one of `words` that `word` may stand for; empty where none is near."""
    words = list(words)
    last = {w.rsplit(".", 1)[-1]: w for w in reversed(words)}
    close = difflib.get_close_matches(str(word), words, 1, 0.5) or [
        last[w] for w in difflib.get_close_matches(str(word).rsplit(".", 1)[-1], list(last), 1, 0.6)
    ]
    return f"; did you mean {close[0]}?" if close else ""


def first_line(error: Exception) -> str:
    """What OmegaConf found wrong, in a user's words, with the key unless the caller names it."""
    text = str(error).strip().splitlines()
    key = next((line.split(":", 1)[1].strip() for line in text if "full_key" in line), "")
    kind = re.search(r"could not be converted to (\w+)", text[0])
    first = text[0]
    if kind and kind[1] in KINDS:
        first = f"it must be {KINDS[kind[1]]}"
    return f"{key}: {first}" if key else first


KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
