"""The keys that a schema knows, and the nearest right one to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, cast, get_args, get_type_hints

from data_tools.errors import UsageError

from .other_names import ours


def known_keys(schema: type, prefix: str = "") -> dict[str, Any]:
    """The type of every key of the dataclass `schema`, such as optim.lr; of a group its class."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(schema).items():
        keys[prefix + name] = hint
        for inner in (hint, *get_args(hint)):  # a group that may be null is a key too
            if is_dataclass(inner):
                keys |= known_keys(cast(type, inner), f"{prefix}{name}.")
    return keys


def check_key(key: str, keys: dict[str, Any], where: str) -> None:
    """Raises UsageError unless `key` is in `keys` (see `known_keys`) and not a group.

    where: the place that the message names.
    """
    if key in keys and not is_dataclass(keys[key]):
        return
    if key in keys:
        inside = ", ".join(k for k in keys if k.startswith(key + "."))
        raise UsageError(f"{where}: {key} is a group of keys; set one of {inside}")
    raise UsageError(f"{where}: unknown key {key}{meant(key, keys)}")


def meant(key: str, keys: dict[str, Any]) -> str:
    """The text "; did you mean X?": a key of another program, or one that is spelled alike."""
    leaves = [name for name, hint in keys.items() if not is_dataclass(hint)]
    found = ours(key, leaves)
    return f"; did you mean {found}?" if found else nearest(key, leaves)


def nearest(word: object, words: Iterable[str]) -> str:
    """The text "; did you mean X?", X being the one of `words` most like `word`; empty if none is like it."""
    words = list(words)
    last = {w.rsplit(".", 1)[-1]: w for w in reversed(words)}
    close = difflib.get_close_matches(str(word), words, 1, 0.5) or [
        last[w] for w in difflib.get_close_matches(str(word).rsplit(".", 1)[-1], list(last), 1, 0.6)
    ]
    return f"; did you mean {close[0]}?" if close else ""
