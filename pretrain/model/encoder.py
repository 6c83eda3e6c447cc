"""The encoder that a configuration asks for, and what is done to images before it; shared by all models."""

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
from .packing import Packing, Watch, to_device
from .resize import Geometry
from .variants import Architecture
from .vit import VisionTransformer


@dataclass(frozen=True)
class Pixels:
    """mean, std: of pixels in [0, 1], for each channel; max_tiles: of an image."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_tiles: int

    def unpack(
        self, batch: TileBatch | Tensor, encoder: VisionTransformer, watch: Watch | None
    ) -> tuple[Tensor, Packing]:
        """Normalised tiles in packed order, and their packing.

        batch: a TileBatch, or images of one tile (B, C, S, S). watch: as in `Packing`. ValueError for tiles
        that the encoder does not take, and for more tiles than it has places for.
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
        """(pixel / 255 - mean) / std of uint8 tiles; floating ones are normalised already."""
        if tiles.is_floating_point():
            return tiles
        mean, std = (
            to_device(255 * torch.tensor(values, device="cpu"), tiles.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (tiles - mean) / std


def geometry_of(arch: Architecture, tile_size: int | tuple[int, int], max_tiles: int) -> Geometry:
    """What the position tables are made for."""
    rows, columns = (arch.grid(side) for side in sides(tile_size))
    return Geometry(grid=(rows, columns), max_tiles=max_tiles, prefix=int(arch.class_token))


def pooled_norm(config: ModelConfig, arch: Architecture) -> nn.Module:
    """The norm behind the pool, where the configuration has it there."""
    if config.final_norm == "pooled":
        return nn.LayerNorm(arch.embed_dim, eps=config.norm_eps)
    return nn.Identity()


def build_encoder(
    config: ModelConfig,
    arch: Architecture,
    tile_size: int | tuple[int, int],
    geometry: Geometry,
    in_channels: int,
    mask_token: bool,
) -> VisionTransformer:
    """The encoder of a configuration; the sizes that it leaves open are those of `arch`.

    Raises UsageError where its last norm would stand behind the places of tiles.
    """
    if geometry.max_tiles > 1 and config.final_norm == "pooled":
        raise UsageError("model.final_norm=pooled needs data.max_tiles=1: tiles are placed behind the norm")
    max_tiles = geometry.max_tiles
    positions = {
        "embed_dim": arch.embed_dim,
        "tile_size": geometry.grid,
        "patch_size": 1,
        "class_token": arch.class_token,
        "sincos": config.position == "sincos2d",
        "std": 0.02,
    }
    tiled = max_tiles > 1
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
        ),
        token_pos_embedding=(
            TiledTokenPositionalEmbedding(max_tiles, **positions)
            if tiled
            else TokenPositionalEmbedding(**positions)
        ),
        pre_tile_pos_embed=TilePositionalEmbedding(max_tiles, arch.embed_dim) if tiled else None,
        post_tile_pos_embed=TilePositionalEmbedding(max_tiles, arch.embed_dim) if tiled else None,
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
