"""Weights from checkpoints that other programs wrote with DeepSpeed or torch's DCP.

Both formats hold pickles, which can run code when they are read. So `read_foreign` is only called after the
user has said that they trust the checkpoint. No process group is needed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_tools.errors import DataError, UsageError


def read_foreign(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], str]:
    """{name: tensor} of a DeepSpeed ZeRO folder or a DCP folder, fp32, on the CPU; and a prefix.

    shapes: of the wanted tensors, by name. In the folder all names may have the same prefix, such as
    "model.", which is returned. Raises UsageError if the folder is neither, or if a tensor is missing or has
    another shape; DataError if it cannot be read.
    """
    kind = format_of(folder)
    try:
        saved = _deepspeed(folder) if kind == "deepspeed" else _dcp(folder, shapes)
    except UsageError:
        raise
    # BaseException, because DCP's errors are no Exceptions and a damaged pickle can raise anything.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{folder}: it cannot be read: {text[0]}") from None
    prefix = _prefix(folder, saved, shapes)
    return {name: _fitting(folder, saved, prefix + name, shape) for name, shape in shapes.items()}, prefix


def format_of(folder: Path) -> str:
    """The format of `folder`, "deepspeed" or "dcp", by its files. Raises UsageError if it is neither."""
    if (folder / ".metadata").is_file():
        return "dcp"
    tagged = (folder / "latest").is_file() and any(folder.glob("*/*_states.pt"))
    if tagged or any(folder.glob("*_states.pt")):
        return "deepspeed"
    raise UsageError(f"{folder}: neither a folder that DeepSpeed's save_checkpoint nor one that DCP wrote")


def _deepspeed(folder: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    tag = None
    if not (folder / "latest").is_file():
        folder, tag = folder.parent, folder.name
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag)


def _dcp(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    stored = {
        key: entry
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    prefix = _prefix(folder, stored, shapes)
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.removeprefix(prefix) in shapes
    }
    dcp.load(wanted, storage_reader=reader, no_dist=True)
    return wanted


def _prefix(folder: Path, saved: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The prefix in `saved` of the names in `shapes`. Raises UsageError that names a missing tensor."""
    first = next(iter(shapes))
    found = [key.removesuffix(first) for key in saved if key.endswith(first)]
    complete = [prefix for prefix in found if all(prefix + name in saved for name in shapes)]
    if complete:
        return min(complete, key=len)
    best = max(found, key=lambda prefix: sum(prefix + name in saved for name in shapes), default="")
    missing = next(name for name in shapes if best + name not in saved)
    example = f", it has {next(iter(sorted(saved)))}" if saved else ""
    raise UsageError(
        f"{folder}: it lacks {best}{missing}, which this model needs{example}: give the settings of the "
        f"model that was saved"
    )


def _fitting(folder: Path, saved: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    value = saved[key]
    if tuple(value.shape) != shape:
        raise UsageError(f"{folder}: {key} has shape {list(value.shape)}, this model has {list(shape)}")
    return value.detach().float()
