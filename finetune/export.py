"""The weights of a run as files: for this program, transformers or timm. No process group is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoints.weights_file import write_weights

from .formats.folder import write_folder
from .source import open_source


@dataclass(frozen=True)
class Exported:
    """What was written: `tensors` tensors of `source` to `path`."""

    path: Path
    source: str
    tensors: int


def export_safetensors(run: str, destination: str, weights: str = "auto") -> Exported:
    """Write all parameters, fp32, as one safetensors file, whose metadata says how to use them.

    run, weights: as `init` and `weights` of `open_source`. Raises as it does, UsageError where the folder of
    `destination` is missing, and UserError where the disk is full.
    """
    source = open_source(run, weights)
    write_weights(Path(destination), source.shapes, source.read, source.facts)
    return Exported(Path(destination), source.name, len(source.shapes))


def export_folder(run: str, destination: str, program: str, weights: str = "auto") -> Exported:
    """Write a new folder that `program`, hf (transformers) or timm, reads.

    run, weights: as `init` and `weights` of `open_source`. Raises as it does, and UsageError where the folder
    exists or the program cannot express the model.
    """
    source = open_source(run, weights)
    model = source.load(torch.device("cpu"))
    tensors = write_folder(source.name, model, source.facts, program, Path(destination))
    return Exported(Path(destination), source.name, len(tensors))
