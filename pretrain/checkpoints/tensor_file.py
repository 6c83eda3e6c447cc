"""Writing safetensors files one tensor at a time; the sha256 is computed on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**24  # bytes hashed and written at a time


def write_tensors(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write fp32 tensors to `file` in the safetensors format, and wait until they are on the disk.

    shapes: of the tensors, by name. read(name): the values of one, on the CPU; called when they are written,
    so that only one tensor is in memory at a time. Returns {"size": in bytes, "sha256"} of the file. Raises
    OSError, as for a full disk, and ValueError for values that are not fp32 or of another size.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            stream.write(part)
        for name, shape in shapes.items():
            value = read(name)
            if value.dtype != torch.float32 or value.numel() != prod(shape):
                raise ValueError(f"{file}: {name} is {value.dtype} {tuple(value.shape)}, not float32 {shape}")
            if not value.numel():
                continue
            content = value.contiguous().numpy().data.cast("B")
            for start in range(0, len(content), BLOCK):
                block = content[start : start + BLOCK]
                digest.update(block)
                stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return {"size": size, "sha256": digest.hexdigest()}
