"""The weights of a run as files that need no process group to read, ours or another program's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoints.weights_file import write_weights

from .formats.folder import write_peer
from .source import open_source


@dataclass(frozen=True)
class Exported:
    """What was written: `tensors` tensors of `source` to `path`."""

    path: Path
    source: str
    tensors: int


def export_safetensors(run: str, destination: str, weights: str = "auto") -> Exported:
    """Write all parameters, fp32, as one file, with what is needed to use them as metadata."""
    source = open_source(run, weights)
    write_weights(Path(destination), source.shapes, source.read, source.facts)
    return Exported(Path(destination), source.name, len(source.shapes))


def export_peer(run: str, destination: str, peer: str, weights: str = "auto") -> Exported:
    """Write a folder that `peer`, hf (transformers) or timm, reads."""
    source = open_source(run, weights)
    model = source.load(torch.device("cpu"))
    tensors = write_peer(source.name, model, source.facts, peer, Path(destination))
    return Exported(Path(destination), source.name, len(tensors))
