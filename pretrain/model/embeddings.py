"""From tiles to tokens: patches, class token and positions.

Tokens are (T, n, D): T tiles in packed order, n tokens in each. A tile's row and column come from
the Packing, so that one look-up `table[row, column]` serves all tiles.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .init import lecun_normal, normal, reset, zeros
from .packing import Packing


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel: (T, C, S, S) -> (T, patches, D), row by row.

    arXiv 2010.11929, eq. 1. Computed as one matrix product; the weight has the shape of a
    convolution's. Pixels beyond the last whole patch are ignored.
    """

    def __init__(self, patch_size: int, embed_dim: int, in_channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.empty(embed_dim, in_channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim)) if bias else None
        self.init_rules = {"weight": lecun_normal} | ({"bias": zeros} if bias else {})
        reset(self)

    def forward(self, tiles: Tensor) -> Tensor:
        p = self.patch_size
        rows, columns = tiles.shape[-2] // p, tiles.shape[-1] // p
        tiles = tiles[..., : rows * p, : columns * p].to(self.weight.dtype)
        patches = tiles.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))  # T C rows p columns p
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class ClassEmbedding(nn.Module):
    """Puts the class token before a tile's patches, or after them: (T, n, D) -> (T, n + 1, D).

    It is the same in every tile. std: of its initial values, by default D^-0.5 as in torchtune.
    """

    def __init__(self, embed_dim: int, append: bool = False, std: float | None = None) -> None:
        super().__init__()
        self.append = append
        self.weight = nn.Parameter(torch.empty(embed_dim))
        self.init_rules = {"weight": normal(embed_dim**-0.5 if std is None else std)}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        token = self.weight.expand(len(x), 1, -1)
        return torch.cat([x, token] if self.append else [token, x], dim=1)


class TokenPositionalEmbedding(nn.Module):
    """One position table for the tokens of a tile, the same in every tile: local (n, D).

    tile_size: pixels along a side, or rows and columns.
    sincos: a fixed table (see `sincos2d`) instead of a learned one. std: of the learned table's
    initial values, by default D^-0.5 as in torchtune.
    """

    def __init__(
        self,
        embed_dim: int,
        tile_size: int | tuple[int, int],
        patch_size: int,
        *,
        class_token: bool = True,
        sincos: bool = False,
        std: float | None = None,
    ) -> None:
        super().__init__()
        height, width = sides(tile_size)
        self.grid = (height // patch_size, width // patch_size)
        self.prefix = int(class_token)
        # A fixed table too is a parameter, not a buffer, so that it is saved, resized and initialised
        # like the others.
        self.local = nn.Parameter(
            torch.empty(self.prefix + prod(self.grid), embed_dim), requires_grad=not sincos
        )
        learned = normal(embed_dim**-0.5 if std is None else std)
        fixed = partial(_fill_sincos2d, grid=self.grid, prefix=self.prefix)
        self.init_rules = {"local": fixed if sincos else learned}
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return x + self.local


class TiledTokenPositionalEmbedding(TokenPositionalEmbedding):
    """Positions within the tile and within the whole image, as torchtune has them.

    x + local · (1 - tanh gate) + global_[row, column] · tanh gate. The gate begins at 0, which leaves only
    the position within the tile. local: (n, D); global_: (M, M, n, D), M = max_num_tiles.
    """

    def __init__(
        self,
        max_num_tiles: int,
        embed_dim: int,
        tile_size: int | tuple[int, int],
        patch_size: int,
        *,
        class_token: bool = True,
        sincos: bool = False,
        std: float | None = None,
    ) -> None:
        super().__init__(embed_dim, tile_size, patch_size, class_token=class_token, sincos=sincos, std=std)
        self.max_num_tiles = max_num_tiles
        self.global_ = nn.Parameter(torch.empty(max_num_tiles, max_num_tiles, *self.local.shape))
        self.gate = nn.Parameter(torch.empty(1))
        self.init_rules |= {"global_": normal(embed_dim**-0.5), "gate": zeros}
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        gate = self.gate.tanh()
        whole = self.global_[packing.row, packing.column]
        return x + self.local * (1 - gate) + whole * gate


class TilePositionalEmbedding(nn.Module):
    """The position of a tile in its image: x + embedding[row, column] · tanh gate.

    embedding: (M, M, 1, D), M = max_num_tiles. The gate begins at 0.
    """

    def __init__(self, max_num_tiles: int, embed_dim: int) -> None:
        super().__init__()
        self.max_num_tiles = max_num_tiles
        self.embedding = nn.Parameter(torch.empty(max_num_tiles, max_num_tiles, 1, embed_dim))
        self.gate = nn.Parameter(torch.empty(1))
        self.init_rules = {"embedding": normal(embed_dim**-0.5), "gate": zeros}
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        return x + self.embedding[packing.row, packing.column] * self.gate.tanh()


class ClassProjection(nn.Module):
    """A linear map of the first token, without bias: (T, n, D) -> (T, out)."""

    def __init__(self, embed_dim: int, cls_output_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embed_dim, cls_output_dim))
        self.init_rules = {"weight": normal(embed_dim**-0.5)}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] @ self.weight


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be given as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def sincos2d(grid: tuple[int, int], embed_dim: int) -> Tensor:
    """Fixed positions (rows · columns, D): sin x, cos x, sin y, cos y, each a quarter of D.

    arXiv 2205.01580 (after 2104.02057): frequencies 10000^(-i / (D/4 - 1)).
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    quarter = embed_dim // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / max(quarter - 1, 1))
    x, y = x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def _fill_sincos2d(
    values: Tensor, generator: torch.Generator | None, *, grid: tuple[int, int], prefix: int
) -> None:
    values[:prefix] = 0
    values[prefix:] = sincos2d(grid, values.shape[1]).to(values.device)
