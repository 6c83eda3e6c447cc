"""The weights of a run as files that need no process group to read, ours or a peer's."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.checkpoints.weights_file import write_weights

from .formats.folder import write_peer
from .source import open_source


def export_safetensors(run: str, destination: str, weights: str) -> int:
    """Write all parameters, fp32, with what is needed to use them as metadata. Returns the exit code."""
    source = open_source(run, weights)
    write_weights(Path(destination), source.shapes, source.read, source.facts)
    print(f"{len(source.shapes)} tensors of {source.name} -> {destination}")
    return 0


def export_peer(run: str, destination: str, peer: str, weights: str = "auto") -> int:
    """Write a folder that hf (transformers) or timm reads. Returns the exit code."""
    source = open_source(run, weights)
    model = source.load(torch.device("cpu"))
    tensors = write_peer(source.name, model, source.facts, peer, Path(destination))
    print(f"{len(tensors)} tensors of {source.name} -> {destination} for {peer}")
    return 0
