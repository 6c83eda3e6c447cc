"""The weights of a run as one file that needs no process group to read."""

from __future__ import annotations

from pathlib import Path

from pretrain.weights_file import write_weights

from .source import open_source


def export_safetensors(run: str, destination: str, weights: str) -> int:
    """Write all parameters, fp32, with what is needed to use them as metadata. Returns the exit code."""
    source = open_source(run, weights)
    write_weights(Path(destination), source.shapes, source.read, source.facts)
    print(f"{len(source.shapes)} tensors of {source.name} -> {destination}")
    return 0
