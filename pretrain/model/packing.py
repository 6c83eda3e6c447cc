"""Packed images of different lengths.

The tokens of all images lie one behind the other, without padding. Images are sorted by their number
of tiles, so that those of equal length become a dense batch by one reshape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Watch: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Packing], Tensor]"


@dataclass(frozen=True)
class Rotation:
    """Turns the pairs of numbers of each token's heads (see `rope.RotaryPositions`).

    cos, sin: float32 (tokens of the batch, 1, d / 2). neighbours: whether pairs are neighbouring numbers;
    otherwise they lie half a head apart.
    """

    cos: Tensor
    sin: Tensor
    neighbours: bool

    def turn(self, x: Tensor) -> Tensor:
        """x (tokens of the batch, heads, d), turned in float32, in its own type."""
        first, second = (x[..., ::2], x[..., 1::2]) if self.neighbours else x.chunk(2, -1)
        turned = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        whole = torch.stack(turned, -1).flatten(-2) if self.neighbours else torch.cat(turned, -1)
        return whole.to(x.dtype)


@dataclass(frozen=True)
class Packing:
    """Where each tile of a batch lies: B images, T tiles, n tokens in every tile.

    tokens_per_tile: n. uniform: whether all images of this batch have the same number of tiles.
    single: whether no image of any batch can have more than one tile; max_length: the tokens of the
    longest image that any batch can have.
    groups: (images, tiles of each image) for each number of tiles, ascending, which is packed order.
    order, inverse: (T,) packed tile -> its place in the batch, and back; None: they are the same.
    image_inverse: (B,) place in the batch -> packed image; None: they are the same.
    image: (T,) the packed image of each packed tile; row, column: the tile's position in that image, which
    has rows and columns of tiles.
    offsets: int32 (B + 1,) first token of each packed image; host_offsets: the same on the CPU.
    rotation: of queries and keys, or None.
    watch: called in place of `attention.attention`, to inspect a model (`inspection.AttentionMaps`).
    All tensors but host_offsets are on the device of the tokens.
    """

    tokens_per_tile: int
    uniform: bool
    single: bool
    max_length: int
    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None
    image_inverse: Tensor | None
    image: Tensor
    row: Tensor
    column: Tensor
    rows: Tensor
    columns: Tensor
    offsets: Tensor
    host_offsets: Tensor
    rotation: Rotation | None = None
    watch: Watch | None = None

    @classmethod
    def of(
        cls, grid: Tensor, tokens_per_tile: int, device: torch.device, max_tiles: int | None = None
    ) -> Packing:
        """The packing of images whose tiles lie row by row.

        grid: integer (B, 2), rows and columns, on the CPU. max_tiles: the most tiles of an image in
        any batch; with it torch.compile makes one graph for all batches. ValueError for another grid, and
        if there is no image or an image has no tile.
        """
        _check(grid)
        layout = _Layout.of(grid)
        tiles = layout.tiles
        shortest, longest = int(tiles[0]), int(tiles[-1])
        uniform = shortest == longest
        lengths, counts = torch.unique_consecutive(tiles, return_counts=True)
        offsets = F.pad(tiles.cumsum(0) * tokens_per_tile, (1, 0)).int()

        def on_device(values: Tensor) -> Tensor:
            return to_device(values, device)

        return cls(
            tokens_per_tile=tokens_per_tile,
            uniform=uniform,
            single=max(longest, max_tiles or 1) == 1,
            max_length=max(longest, max_tiles or 1) * tokens_per_tile,
            groups=tuple(zip(counts.tolist(), lengths.tolist(), strict=True)),
            order=None if uniform else on_device(layout.order),
            inverse=None if uniform else on_device(torch.argsort(layout.order)),
            image_inverse=None if uniform else on_device(torch.argsort(layout.packed)),
            image=on_device(layout.image),
            row=on_device(layout.row),
            column=on_device(layout.column),
            rows=on_device(grid[layout.packed, 0][layout.image]),
            columns=on_device(grid[layout.packed, 1][layout.image]),
            offsets=on_device(offsets),
            host_offsets=offsets,
        )

    @property
    def images(self) -> int:
        """B, the number of images."""
        return len(self.offsets) - 1

    def pack(self, tiles: Tensor) -> Tensor:
        """(T, ...) from the order of the batch into packed order."""
        return tiles if self.order is None else tiles.index_select(0, self.order)

    def unpack(self, tiles: Tensor) -> Tensor:
        """(T, ...) from packed order into the order of the batch."""
        return tiles if self.inverse is None else tiles.index_select(0, self.inverse)

    def image_means(self, tiles: Tensor) -> Tensor:
        """(T, D) in packed order -> (B, D) in the order of the batch: the mean over each image."""
        parts = tiles.split([count * length for count, length in self.groups])
        means = torch.cat(
            [part.unflatten(0, group).mean(1) for part, group in zip(parts, self.groups, strict=True)]
        )
        return self.unpack_images(means)

    def unpack_images(self, images: Tensor) -> Tensor:
        """(B, ...) from packed order into the order of the batch."""
        return images if self.image_inverse is None else images.index_select(0, self.image_inverse)


class _Layout(NamedTuple):
    """Where the T tiles of B images lie when the images are sorted by their number of tiles.

    tiles: (B,) of each packed image; packed: (B,) its place in the batch. image, row, column: (T,) of each
    packed tile; order: (T,) its place in the batch.
    """

    tiles: Tensor
    packed: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    order: Tensor

    @classmethod
    def of(cls, grid: Tensor) -> _Layout:
        """grid: integer (B, 2), rows and columns of each image, in the order of the batch."""
        in_batch = grid.prod(1)
        tiles, packed = torch.sort(in_batch, stable=True)
        image = torch.arange(len(grid)).repeat_interleave(tiles)
        within = torch.arange(len(image)) - (tiles.cumsum(0) - tiles)[image]
        columns = grid[packed, 1][image]
        order = (in_batch.cumsum(0) - in_batch)[packed][image] + within
        return cls(tiles, packed, image, within // columns, within % columns, order)


def _check(grid: Tensor) -> None:
    if grid.ndim != 2 or grid.shape[1] != 2 or grid.is_floating_point():
        raise ValueError(f"grid must be integers (images, 2), got {grid.dtype} {tuple(grid.shape)}")
    if len(grid) == 0 or grid.min() < 1:
        raise ValueError("every image needs at least one row and one column of tiles")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, for which the host does not wait: this needs pinned memory."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
