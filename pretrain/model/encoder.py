"""What all models share: the encoder that a configuration asks for, and how images are prepared for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from data_tools.errors import UsageError
from data_tools.tile_batch import TileBatch

from ..config.schema import ModelConfig
from .block import Block
from .embeddings import (
    TiledTokenPositionalEmbedding,
    TilePositionalEmbedding,
    TokenPositionalEmbedding,
    sides,
)
from .hybrid import HybridEmbedding, ResNetV2
from .norm import build_norm
from .packing import Packing, Watch, to_device
from .resize import Geometry
from .rope import RotaryPositions, image_rotation, tile_rotation
from .variants import Architecture
from .vit import VisionTransformer


@dataclass(frozen=True)
class Pixels:
    """How images become the encoder's input.

    mean, std: of pixels in [0, 1], for each channel; max_tiles: the most tiles that an image may have.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_tiles: int

    def unpack(
        self, batch: TileBatch | Tensor, encoder: VisionTransformer, watch: Watch | None
    ) -> tuple[Tensor, Packing]:
        """Normalised tiles in packed order, and their packing.

        batch: a TileBatch, or images of one tile (B, C, S, S). watch: as in `Packing`. ValueError for tiles
        that do not fit the encoder or the batch's grid, and for an image with too many tiles.
        """
        if isinstance(batch, Tensor):
            if not batch.ndim or not len(batch):
                raise ValueError(f"images must be (B, C, S, S) and at least one, got {tuple(batch.shape)}")
            tiles, grid = batch, torch.ones(len(batch), 2, dtype=torch.int64, device="cpu")
        else:
            tiles, grid = batch.tiles, batch.grid
        encoder.check(tiles)
        if len(tiles) != grid.prod(1).sum():
            raise ValueError(f"{len(tiles)} tiles do not fit a grid of {int(grid.prod(1).sum())}")
        if grid.prod(1).max() > self.max_tiles:
            raise ValueError(
                f"an image has {grid.prod(1).max()} tiles, but this model is for at most {self.max_tiles}"
            )
        packing = replace(encoder.packing(grid, tiles.device), watch=watch)
        return self.normalise(packing.pack(tiles)), packing

    def normalise(self, tiles: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 tiles; floating-point tiles come back unchanged."""
        if tiles.is_floating_point():
            return tiles
        mean, std = (
            to_device(255 * torch.tensor(values, device="cpu"), tiles.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (tiles - mean) / std


def geometry_of(arch: Architecture, tile_size: int | tuple[int, int], max_tiles: int) -> Geometry:
    """The geometry of the position tables; UsageError if the patches do not fill a tile."""
    rows, columns = (arch.grid(side) for side in sides(tile_size))
    return Geometry(grid=(rows, columns), max_tiles=max_tiles, prefix=int(arch.class_token))


def pooled_norm(config: ModelConfig, arch: Architecture) -> nn.Module:
    """The norm behind the pool; Identity if the configuration has none there."""
    if config.final_norm == "pooled":
        return build_norm(config.norm, arch.embed_dim, config.norm_eps)
    return nn.Identity()


def build_encoder(
    config: ModelConfig,
    arch: Architecture,
    tile_size: int | tuple[int, int],
    geometry: Geometry,
    in_channels: int,
    mask_token: bool,
) -> VisionTransformer:
    """The encoder of a configuration; its sizes are those of `arch`, which `resolve` made of it.

    Raises UsageError for several tiles with the norm behind the pool: the positions of tiles would be added
    before that norm, but they belong behind the last norm.
    """
    max_tiles = geometry.max_tiles
    tiled = max_tiles > 1
    tables = tiled and config.position != "rope2d"
    if tiled and config.final_norm == "pooled":
        raise UsageError("model.final_norm=pooled needs data.max_tiles=1: tiles are placed behind the norm")
    return VisionTransformer(
        patch_size=arch.stride,
        tile_size=tile_size,
        num_layers=arch.num_layers,
        embed_dim=arch.embed_dim,
        layer=Block(
            arch.embed_dim,
            arch.num_heads,
            arch.mlp_dim,
            activation=config.activation,
            qkv_bias=arch.qkv_bias,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            qk_norm=arch.qk_norm,
            layer_scale=config.layer_scale,
            parallel=arch.parallel,
            norm=config.norm,
            mlp=config.mlp,
        ),
        token_pos_embedding=_positions(config, arch, geometry),
        pre_tile_pos_embed=TilePositionalEmbedding(max_tiles, arch.embed_dim) if tables else None,
        post_tile_pos_embed=TilePositionalEmbedding(max_tiles, arch.embed_dim) if tables else None,
        rope=_rotary(config, arch, max_tiles),
        norm=config.norm,
        in_channels=in_channels,
        class_token=arch.class_token,
        patch_bias=not config.pre_norm,
        pre_norm=config.pre_norm,
        norm_eps=config.norm_eps,
        class_token_std=0.0,
        dropout=config.dropout,
        drop_path=config.drop_path,
        registers=config.registers,
        mask_token=mask_token,
        post_norm=config.final_norm == "tokens",
        grid=geometry.grid,
        patch_embed=(
            HybridEmbedding(ResNetV2(arch.backbone, in_channels), arch.patch_size, arch.embed_dim)
            if arch.backbone is not None
            else None
        ),
    )


def _rotary(config: ModelConfig, arch: Architecture, max_tiles: int) -> RotaryPositions | None:
    width = arch.embed_dim // arch.num_heads
    if config.position == "rope2d":
        return image_rotation(width, max_tiles)
    return tile_rotation(width) if config.use_rope else None


def _positions(
    config: ModelConfig, arch: Architecture, geometry: Geometry
) -> TokenPositionalEmbedding | None:
    """The position table for `geometry`; the embedding is built with patches of one pixel."""
    if config.position == "rope2d":
        return None
    width, grid, class_token = arch.embed_dim, geometry.grid, arch.class_token
    sincos, std = config.position == "sincos2d", 0.02
    if geometry.max_tiles == 1:
        return TokenPositionalEmbedding(width, grid, 1, class_token=class_token, sincos=sincos, std=std)
    return TiledTokenPositionalEmbedding(
        geometry.max_tiles, width, grid, 1, class_token=class_token, sincos=sincos, std=std
    )
