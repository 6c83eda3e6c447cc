"""Position tables for another grid of patches or another number of tiles.

Two things can change between a checkpoint and a model. If the grid of patches in a tile changes, the
table is interpolated like an image; the rows of the prefix (class token) stay. If the largest number of
tiles changes, tables (M, M, ...) are cropped, or extended by zeros, so that the tile in row r and column c
keeps its entry; they are not interpolated, since a tile is looked up by its absolute row and column.

A table may be sharded (DTensor): it is gathered, and the result is sharded in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# The table of a plain model and the local table of a tiled model have one name, so that weights fit both.
LOCAL = "token_pos_embedding.local"
GLOBAL = "token_pos_embedding.global_"
PRE_TILE = "pre_tile_pos_embed.embedding"
POST_TILE = "post_tile_pos_embed.embedding"

# The interpolation for each mode of `resize_grid`.
MODES: dict[str, Callable[..., Tensor]] = {
    "bilinear": partial(F.interpolate, mode="bilinear", align_corners=True),
    "bicubic": partial(F.interpolate, mode="bicubic", antialias=True),
    "bilinear_centers": partial(F.interpolate, mode="bilinear"),
    "bicubic_centers": partial(F.interpolate, mode="bicubic"),
    "bicubic_offset": partial(F.interpolate, mode="bicubic"),
}


@dataclass(frozen=True)
class Geometry:
    """What position tables depend on.

    grid: rows and columns of patches in a tile; max_tiles: of an image; prefix: number of class tokens.
    """

    grid: tuple[int, int]
    max_tiles: int
    prefix: int


def _whole(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, for sharded tables too: every process gathers the table and computes the whole result."""

    @wraps(function)
    def on_whole(*args: Any, **kwargs: Any) -> Tensor:
        sharded = next((value for value in args if isinstance(value, DTensor)), None)
        if sharded is None:
            return function(*args, **kwargs)
        whole = [value.full_tensor() if value is sharded else value for value in args]
        result = function(*whole, **kwargs)
        return distribute_tensor(result, sharded.device_mesh, sharded.placements, src_data_rank=None)

    return on_whole


@_whole
def resize_grid(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    prefix: int = 0,
    mode: str = "bilinear",
) -> Tensor:
    """Interpolate a table (prefix + h·w, D) or (h, w, D) from grid `old` (h, w) to `new`.

    mode: `bilinear`, with aligned corners, as the paper's scipy.ndimage.zoom(order=1); `bicubic`, with
    antialiasing (a = -0.5), as timm. Three more modes give the numbers of other programs:
    `bilinear_centers`, timm for Google's files; `bicubic_centers` (a = -0.75), transformers;
    `bicubic_offset`, transformers before 4.4x: the same, sampled at steps of old / (new + 0.1).

    Computed in float64, returned in the table's dtype. If the grids are equal, the table itself is
    returned. ValueError for another mode or another number of rows.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    as_grid = table.ndim == 3
    rows = table.flatten(0, 1) if as_grid else table
    if len(rows) != prefix + old[0] * old[1] or (as_grid and tuple(table.shape[:2]) != tuple(old)):
        raise ValueError(
            f"a table of shape {tuple(table.shape)} is not {prefix} + {old[0]}x{old[1]} positions"
        )
    if tuple(old) == tuple(new):
        return table
    image = rows[prefix:].double().unflatten(0, tuple(old)).permute(2, 0, 1)[None]
    if mode == "bicubic_offset":
        scale = tuple((after + 0.1) / before for before, after in zip(old, new, strict=True))
        image = MODES[mode](image, scale_factor=scale)
    else:
        image = MODES[mode](image, size=tuple(new))
    resized = image[0].permute(1, 2, 0).to(table.dtype)
    return resized if as_grid else torch.cat([rows[:prefix], resized.flatten(0, 1)])


@_whole
def resize_tiles(table: Tensor, new_max: int) -> Tensor:
    """Crop a table (M, M, ...) to (new_max, new_max, ...), or extend it by zeros."""
    kept = min(len(table), new_max)
    if kept == len(table) == new_max:
        return table
    resized = table.new_zeros(new_max, new_max, *table.shape[2:])
    resized[:kept, :kept] = table[:kept, :kept]
    return resized


def is_position_table(name: str) -> bool:
    """Whether the parameter of this name depends on the Geometry."""
    return name.endswith((LOCAL, GLOBAL, PRE_TILE, POST_TILE))


@_whole
def adapt_positions(
    name: str, value: Tensor, source: Geometry, target: Geometry, mode: str = "bilinear"
) -> Tensor:
    """The table `name` of a model of geometry `source`, for a model of geometry `target`.

    A target with several tiles has tables that a source with one tile lacks: they keep their initial
    values, which gates at 0 switch off. From several tiles to one, call `fold_tiles` first.
    ValueError if `name` is not a table or the numbers of prefix tokens differ.
    """
    if source.prefix != target.prefix:
        raise ValueError(
            f"{name}: the source has {source.prefix} prefix tokens and the target {target.prefix}; "
            "the pools differ"
        )
    if name.endswith(LOCAL):
        return resize_grid(value, source.grid, target.grid, source.prefix, mode)
    if name.endswith((PRE_TILE, POST_TILE)):
        return resize_tiles(value, target.max_tiles)
    if name.endswith(GLOBAL):
        value = resize_tiles(value, target.max_tiles)
        if source.grid == target.grid:
            return value
        tiles = [
            resize_grid(tile, source.grid, target.grid, source.prefix, mode) for tile in value.flatten(0, 1)
        ]
        return torch.stack(tiles).unflatten(0, value.shape[:2])
    raise ValueError(f"{name} is no position table")


@_whole
def stretch_positions(name: str, value: Tensor, source: Geometry, target: Geometry) -> Tensor:
    """The table `name` as torchtune resizes it when it loads a checkpoint; arguments as in `adapt_positions`.

    Always bilinear with aligned corners. The patches of all tiles form one map (M·h, M·w), which is
    interpolated as a whole; class tokens and tile tables are maps (M, M).
    """
    if name.endswith(LOCAL):
        return resize_grid(value, source.grid, target.grid, source.prefix)
    tiles, new_tiles = (source.max_tiles,) * 2, (target.max_tiles,) * 2
    split = source.prefix if name.endswith(GLOBAL) else 1
    prefix = value.new_zeros(*new_tiles, 0)
    if split:
        prefix = resize_grid(value[:, :, :split].flatten(2), tiles, new_tiles)
    prefix = prefix.unflatten(2, (split, value.shape[-1]))
    if not name.endswith(GLOBAL):
        return prefix
    old, new = (tuple(g.max_tiles * side for side in g.grid) for g in (source, target))
    patches = value[:, :, split:].unflatten(2, source.grid).transpose(1, 2)  # M h M w D
    patches = resize_grid(patches.flatten(2, 3).flatten(0, 1), old, new)
    patches = patches.unflatten(1, (target.max_tiles, -1)).unflatten(0, (target.max_tiles, -1))
    return torch.cat([prefix, patches.transpose(1, 2).flatten(2, 3)], dim=2)


def fold_tiles(state: dict[str, Tensor], prefix: int) -> dict[str, Tensor]:
    """The state of a model for several tiles as that of a model for one; images of one tile give the same.

    The entries of the tables for the tile in row 0, column 0, times tanh of their gates, are added to the
    local table and to the bias of the last norm. A state without tile tables comes back as it is.
    prefix: number of class tokens.
    """
    root = next((name.removesuffix(GLOBAL) for name in state if name.endswith(GLOBAL)), None)
    if root is None:
        return state
    folded = dict(state)

    def gate(table: str) -> Tensor:
        return folded.pop(root + table.rpartition(".")[0] + ".gate").float().tanh()

    def gated(table: str, gate: Tensor) -> Tensor:
        return folded.pop(root + table)[0, 0].float() * gate

    whole = gate(GLOBAL)
    local = folded[root + LOCAL]
    rows = local.float() * (1 - whole) + gated(GLOBAL, whole)
    rows[prefix:] += gated(PRE_TILE, gate(PRE_TILE))
    folded[root + LOCAL] = rows.to(local.dtype)
    bias = folded[root + "ln_post.bias"]
    shift = gated(POST_TILE, gate(POST_TILE))[0]
    folded[root + "ln_post.bias"] = (bias.float() + shift).to(bias.dtype)
    return folded
