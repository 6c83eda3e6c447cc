"""The weights of a run as files that need no process group to read, ours or a peer's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from data_tools.errors import UsageError
from pretrain.engine.checkpoint import write_tensors

from .peers import write_peer
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


def export_peer(run: str, destination: str, peer: str) -> int:
    """Write a folder that hf (transformers) or timm reads. Returns the exit code."""
    source = open_source(run)
    model = source.load(torch.device("cpu"))
    tensors = write_peer(source.name, model, source.facts, peer, Path(destination))
    print(f"{len(tensors)} tensors of {source.name} -> {destination} for {peer}")
    return 0
