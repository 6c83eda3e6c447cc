"""Names of transformers' parameters: in files, and in memory since its version 5."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .entries import Weights

BODY = "vit."  # before the names of a classifier's parameters, but not before those of its head
HEAD_ONLY = "classifier."
# Inside of a layer: in memory -> in files.
IN_LAYER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
FILE_LAYERS, MEMORY_LAYERS = "encoder.layer.", "layers."


def as_in_files(weights: Weights) -> tuple[dict[str, Any], Callable[[str], str]]:
    """The weights by the names that files have for a model without a head, and how the caller names them.

    The names of transformers' models in memory, before version 5 and since, are those of files or are
    translated. ValueError where two names mean the same parameter.
    """
    found: dict[str, Any] = {}
    named: dict[str, str] = {}
    for name, value in weights.items():
        in_files = _in_files(name.removeprefix(BODY))
        if in_files in found:
            raise ValueError(f"the weights hold both '{name}' and '{named[in_files]}': only one can be right")
        found[in_files], named[in_files] = value, name
    prefix = BODY if any(name.startswith(BODY) for name in weights) else ""
    in_memory = any(name.removeprefix(BODY).startswith(MEMORY_LAYERS) for name in weights)

    def shown(name: str) -> str:
        if name in named or name.startswith(HEAD_ONLY):
            return named.get(name, name)
        return prefix + (_in_memory(name) if in_memory else name)

    return found, shown


def _in_files(name: str) -> str:
    layer = re.match(r"layers\.(\d+)\.(.*)\.(weight|bias)$", name)
    if layer is None:
        return name
    return f"{FILE_LAYERS}{layer[1]}.{IN_LAYER.get(layer[2], layer[2])}.{layer[3]}"


def _in_memory(name: str) -> str:
    layer = re.match(r"encoder\.layer\.(\d+)\.(.*)\.(weight|bias)$", name)
    if layer is None:
        return name
    back = {theirs: ours for ours, theirs in IN_LAYER.items()}
    return f"{MEMORY_LAYERS}{layer[1]}.{back.get(layer[2], layer[2])}.{layer[3]}"
