"""Resizing of maps, one axis after the other, each new place as a sum over old ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cubic(x: float, a: float) -> float:
    """The kernel of cubic convolution (Keys 1981); a is its slope at 1."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def aligned(old: int, new: int) -> Tensor:
    """Linear, the first and the last place stay: scipy.ndimage.zoom of order 1. (new, old)."""
    step = (old - 1) / (new - 1) if new > 1 else 0.0
    return torch.tensor(
        [[triangle(i * step - j) for j in range(old)] for i in range(new)], dtype=torch.float64
    )


def centred(old: int, new: int, a: float | None, step: float | None = None) -> Tensor:
    """Between the centres of places, the border repeated: cubic, or linear where a is None.

    step: how far the centres of new places lie apart, in old ones.
    """
    step = old / new if step is None else step
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * step - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            share = triangle(centre - j) if a is None else cubic(centre - j, a)
            matrix[i, min(max(j, 0), old - 1)] += share
    return matrix


def antialiased(old: int, new: int, a: float | None) -> Tensor:
    """As Pillow resizes: the kernel as wide as the shrinking asks for, places outside left out."""
    width = max(old / new, 1.0)
    rows = []
    for i in range(new):
        distances = [(j + 0.5 - (i + 0.5) * old / new) / width for j in range(old)]
        rows.append([triangle(x) if a is None else cubic(x, a) for x in distances])
    matrix = torch.tensor(rows, dtype=torch.float64)
    return matrix / matrix.sum(1, keepdim=True)


def nearest(old: int, new: int) -> Tensor:
    """The old place under the beginning of the new one."""
    return torch.eye(old, dtype=torch.float64)[[i * old // new for i in range(new)]]


MODES = {
    "bilinear": aligned,
    "bicubic": lambda old, new: antialiased(old, new, -0.5),
    "bilinear_centers": lambda old, new: centred(old, new, None),
    "bicubic_centers": lambda old, new: centred(old, new, -0.75),
    "bicubic_offset": lambda old, new: centred(old, new, -0.75, old / (new + 0.1)),
}


def resize(map_: Tensor, new: Sequence[int], mode: str) -> Tensor:
    """(h, w, D) -> (*new, D)."""
    down, across = (MODES[mode](old, side) for old, side in zip(map_.shape[:2], new, strict=True))
    return torch.einsum("ih,jw,hwd->ijd", down, across, map_.double()).to(map_.dtype)


def resize_table(table: Tensor, old: Sequence[int], new: Sequence[int], prefix: int, mode: str) -> Tensor:
    """Positions (1, prefix + h w, D) on another grid: the first `prefix` stay, a table that fits as well."""
    if tuple(old) == tuple(new):
        return table
    grid = resize(table[0, prefix:].reshape(*old, -1), new, mode)
    return torch.cat([table[:, :prefix], grid.reshape(1, -1, table.shape[-1])], 1)
