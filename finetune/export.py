"""The weights of a run as one file that needs no process group to read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from data_tools.errors import UsageError
from pretrain.engine.checkpoint import write_tensors

from .source import METADATA_KEY, open_source


def export_safetensors(run: str, destination: str) -> int:
    """Write all parameters, fp32, with what is needed to use them as metadata. Returns the exit code."""
    source = open_source(run)
    target = Path(destination)
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    temporary = target.with_name(target.name + ".tmp")
    tensors = {name: source.read(name) for name in sorted(source.shapes)}
    write_tensors(temporary, tensors, {METADATA_KEY: json.dumps(source.facts)})
    os.replace(temporary, target)
    print(f"{len(tensors)} tensors of {source.name} -> {target}")
    return 0
