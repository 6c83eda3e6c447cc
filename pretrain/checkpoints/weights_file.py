"""One file with the weights of a model and what is needed to use them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data_tools.errors import UsageError, UserError

from .tensor_file import write_tensors

# What a model needs besides its weights; a checkpoint's state.json has these keys among others.
FACTS = ("step", "model", "num_classes", "classes", "objective", "preprocessing")
METADATA_KEY = "vit-pretrain"


def write_weights(
    target: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    facts: Mapping[str, Any],
) -> None:
    """Write the safetensors file `target`, fp32, one tensor at a time.

    shapes: of the parameters, by name. read(name): the values of one. facts: those with a key in FACTS go
    into the file's metadata. Raises UsageError if the folder is missing, UserError if writing fails.
    """
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    temporary = target.with_name(target.name + ".tmp")
    metadata = {METADATA_KEY: json.dumps({key: facts[key] for key in FACTS if key in facts})}
    try:
        write_tensors(temporary, dict(sorted(shapes.items())), read, metadata)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{target}: it could not be written: {error.strerror or error}") from None
