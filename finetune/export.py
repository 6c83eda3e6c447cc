"""The weights of a run as files: for this program, transformers or timm. No process group is needed.

Everything that is written is read again before it has its name: an export that exists can be loaded.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_tools.errors import DataError
from pretrain.checkpoints.weights_file import FACTS, write_weights

from .formats.folder import write_folder
from .source import TrainedWeights, open_source


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
    target = Path(destination)
    temporary = target.with_name(target.name + ".unchecked")
    write_weights(temporary, source.shapes, source.read, source.facts)
    try:
        _check_what_was_written(temporary, source)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(Path(destination), source.name, len(source.shapes))


def _check_what_was_written(file: Path, source: TrainedWeights) -> None:
    """DataError if `file` does not read as the weights and facts of `source`."""
    read = open_source(str(file))
    same = read.shapes == source.shapes and all(read.facts.get(key) == value for key, value in _plain(source))
    for name in source.shapes if same else ():
        same = same and torch.equal(read.read(name).view(torch.int32), source.read(name).view(torch.int32))
    if not same:
        raise DataError(
            f"{source.name}: what was written is not the same model; {file} is deleted: try again"
        )


def _plain(source: TrainedWeights) -> list[tuple[str, Any]]:
    """The facts of `source` as a file gives them back: JSON has lists where we may have tuples."""
    known = {key: source.facts[key] for key in FACTS if key in source.facts}
    return list(json.loads(json.dumps(known)).items())


def export_folder(run: str, destination: str, program: str, weights: str = "auto") -> Exported:
    """Write a new folder that `program`, hf (transformers) or timm, reads.

    run, weights: as `init` and `weights` of `open_source`. Raises as it does, and UsageError where the folder
    exists or the program cannot express the model.
    """
    source = open_source(run, weights)
    model = source.load(torch.device("cpu"))
    tensors = write_folder(source.name, model, source.facts, program, Path(destination))
    return Exported(Path(destination), source.name, len(tensors))
