"""timm's Vision Transformers by name: what its entry points give to the model, and their preprocessing.

timm_architectures.json is made by tests/bench/timm_architectures.py from timm itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import timm_arguments
from .timm_arguments import DEFAULTS

TABLE = Path(__file__).with_name("timm_architectures.json")
_CONTENT: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
VERSION: str = _CONTENT.get("timm", "")  # of the timm whose entry points these are
ARCHITECTURES: dict[str, dict[str, Any]] = _CONTENT.get("architectures", {})
EARLIER_NAMES: dict[str, str] = _CONTENT.get("earlier_names", {})


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


def markdown(architectures: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of docs/peers.md: a row for each architecture."""
    lines = [
        "| architecture | patch | image | width | depth | heads | pool | what else | preprocessing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in architectures.items():
        arguments = DEFAULTS | row["arguments"]
        sizes = [arguments[key] for key in ("embed_dim", "depth", "num_heads", "global_pool")]
        patch = "" if "backbone" in arguments else arguments["patch_size"]
        known = row["preprocessing"]
        cells = [f"`{name}`", patch, known["input_size"][-1], *sizes, _rest(row["arguments"]), _pixels(known)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _rest(arguments: Mapping[str, Any]) -> str:
    """What else an architecture has, or why it is refused."""
    try:
        timm_arguments.check(arguments)
    except ValueError as error:
        return f"**refused**: {error}"
    shown = (*DEFAULTS, "norm_eps")
    hidden = ("patch_size", "img_size", "embed_dim", "depth", "num_heads", "global_pool")
    parts = [f"{key}={arguments[key]}" for key in shown if key in arguments and key not in hidden]
    if resnet := arguments.get("backbone"):
        parts.insert(0, f"ResNetV2 {'-'.join(map(str, resnet['layers'])) or 'stem'}")
    return ", ".join(parts)


def _pixels(known: Mapping[str, Any]) -> str:
    mean, std = (" ".join(f"{x:.3g}" for x in dict.fromkeys(known[key])) for key in ("mean", "std"))
    crop = f"{known['crop_mode']} {known['crop_pct']:g}"
    return f"{crop}, {known['interpolation']}, mean {mean}, std {std}"
