"""Weights in pickles (torch.save) as a safetensors file. Nothing but tensors and plain values is read."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_tools.errors import DataError, UsageError, UserError

# Of what training scripts put beside the weights: options and figures. Making these runs no code of a file.
SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *(SCALAR, (SCALAR, "numpy.core.multiarray.scalar")),
]
# What torch.load raises for a file that is something else.
DAMAGE = (
    *(pickle.UnpicklingError, OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    AttributeError,
)


@dataclass(frozen=True)
class Converted:
    """What was written: `tensors` tensors to `path`, from the entry `key` of the pickle (empty: all of it).

    left_out: names of what is no tensor of floating-point numbers.
    """

    path: Path
    tensors: int
    key: str
    left_out: tuple[str, ...]


def convert(sources: Sequence[str], destination: str, key: str = "") -> Converted:
    """Write the weights of pickles as one safetensors file, under the names that they have.

    sources: a file, or the parts of a checkpoint in several files. key: the entry that holds the weights,
    where there are several, such as state_dict or model_ema. Pickles are read with torch's weights_only.
    Raises UsageError for a key that is not there or has to be chosen, DataError for what holds other objects
    or is damaged.
    """
    target = Path(destination)
    if target.exists():
        raise UsageError(f"{target} exists: choose a file that does not")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    found: dict[str, Any] = {}
    used = ""
    for source in sources:
        used, weights = _weights(source, _read(source), key)
        if both := sorted(found.keys() & weights.keys()):
            raise DataError(f"{source}: {both[0]} is in another of the files too")
        found |= weights
    kept = {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    temporary = target.with_name(target.name + ".tmp")
    try:
        save_file(kept, temporary, metadata={"format": "pt"})
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{target}: it could not be written: {error.strerror or error}") from None
    return Converted(target, len(kept), used, tuple(sorted(found.keys() - kept.keys())))


def _read(source: str) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{source}: no such file") from None
    except DAMAGE as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise DataError(
                f"{source}: it holds {named[1]}, and only tensors and plain values are read"
            ) from None
        text = str(error).rpartition("WeightsUnpickler error:")[2]  # torch first advises to run its code
        why, *_ = *text.strip().splitlines(), type(error).__name__
        raise DataError(f"{source}: damaged or not a file of torch.save: {why}") from None


def _weights(source: str, content: Any, key: str) -> tuple[str, dict[str, Any]]:
    """The entry with the weights, and its key."""
    found = content.items() if isinstance(content, dict) else ()
    entries = {str(name): value for name, value in found if _holds_tensors(value)}
    if key:
        if key not in entries:
            has = f"it has {', '.join(entries)}" if entries else "it has no groups of tensors"
            raise UsageError(f"{source}: no tensors under '{key}'; {has}")
        return key, entries[key]
    if _holds_tensors(content) and any(isinstance(value, Tensor) for value in content.values()):
        return "", content
    if len(entries) != 1:
        if not entries:
            raise DataError(f"{source}: it holds no weights by name")
        raise UsageError(f"{source}: it holds {', '.join(entries)}: choose one with --key")
    return next(iter(entries.items()))


def _holds_tensors(value: Any) -> bool:
    """Whether this is a dictionary of names, of which some are names of tensors."""
    return (
        isinstance(value, dict)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(item, Tensor) for item in value.values())
    )
