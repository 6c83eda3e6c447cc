"""Rotary positions in two dimensions: queries and keys are rotated by the place of their patch.

arXiv 2104.09864 in one dimension, 2403.13298 (section 3.1, axial) in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import tau

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import Packing, Rotation


@dataclass(frozen=True)
class RotaryPositions:
    """How the patches of an image turn queries and keys.

    Half of the pairs of a head turn with the patch's row and half with its column, pair i of each half by
    place · base^(-2i / (width / 2)). Tokens without a place, such as the class token, do not turn.
    width: of a head, a multiple of 4. max_num_tiles: of an image along a side; None: any number.

    within_tile: the place is that in the tile, counted from 1, and neighbouring numbers are a pair, the
    column's first, as torchtune's VisionRotaryPositionalEmbeddings have it. Otherwise it is that in the whole
    image, from -2π at its first edge to 2π at the other, and pairs lie half a head apart, the row's first, as
    in DINOv3 (arXiv 2508.10104, section 3.2): at another resolution the places stay.
    """

    width: int
    base: float
    within_tile: bool = False
    max_num_tiles: int | None = None

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4, got {self.width}")

    def rotation(self, packing: Packing, grid: tuple[int, int], before: int, after: int) -> Rotation:
        """That of all tokens of a packed batch.

        grid: rows and columns of patches in a tile; before, after: tokens of a tile before and after them.
        """
        device = packing.row.device
        exponents = torch.arange(self.width // 4, device=device) / (self.width // 4)
        frequencies = self.base**-exponents
        rows, columns = (
            self._places(side, *tiles)[..., None] * frequencies  # (T, side, width / 4)
            for side, tiles in zip(
                grid, ((packing.row, packing.rows), (packing.column, packing.columns)), strict=True
            )
        )
        rows = rows[:, :, None].expand(-1, -1, grid[1], -1)
        columns = columns[:, None].expand(-1, grid[0], -1, -1)
        pairs = (columns, rows) if self.within_tile else (rows, columns)
        angles = F.pad(torch.cat(pairs, -1).flatten(1, 2), (0, 0, before, after)).flatten(0, 1)[:, None]
        return Rotation(angles.cos(), angles.sin(), neighbours=self.within_tile)

    def _places(self, side: int, tile: Tensor, tiles: Tensor) -> Tensor:
        """(T, side) the places of the patches along one side of the tiles.

        tile: (T,) the tile's own place in its image; tiles: (T,) how many the image has along that side.
        """
        patch = torch.arange(side, device=tile.device)
        if self.within_tile:
            return (patch + 1.0).expand(len(tile), -1)
        return tau * (2 * (tile[:, None] * side + patch + 0.5) / (tiles[:, None] * side) - 1)


def image_rotation(width: int, max_num_tiles: int) -> RotaryPositions:
    """By the place in the image, as model.position=rope2d; the base is DINOv3's."""
    return RotaryPositions(width, 100.0, max_num_tiles=max_num_tiles)


def tile_rotation(width: int) -> RotaryPositions:
    """By the place in the tile, as torchtune's use_rope."""
    return RotaryPositions(width, 10_000.0, within_tile=True)
