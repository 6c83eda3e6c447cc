"""timm's Vision Transformers by name: what its entry points give to the model, and their preprocessing.

timm_architectures.json is made by tests/bench/timm_architectures.py from timm itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("timm_architectures.json")
_CONTENT: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
ARCHITECTURES: dict[str, dict[str, Any]] = _CONTENT["architectures"]
EARLIER_NAMES: dict[str, str] = _CONTENT["earlier_names"]


class Architecture(NamedTuple):
    """One of timm's: the arguments that differ from the defaults, and keys of its pretrained_cfg."""

    name: str
    arguments: dict[str, Any]
    preprocessing: dict[str, Any]


def find(name: str) -> Architecture | None:
    """The architecture that `name` means to timm, with or without the tag of its weights; None: not known."""
    bare = name.partition(".")[0]
    bare = EARLIER_NAMES.get(bare, bare)
    row = ARCHITECTURES.get(bare)
    return None if row is None else Architecture(bare, dict(row["arguments"]), dict(row["preprocessing"]))
