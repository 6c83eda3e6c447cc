"""The image classifier: encoder, pool, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_tools.batch import TileBatch
from pretrain.config import ModelConfig
from pretrain.model.attention import to_device
from pretrain.model.block import Block
from pretrain.model.embeddings import (
    TiledTokenPositionalEmbedding,
    TilePositionalEmbedding,
    TokenPositionalEmbedding,
)
from pretrain.model.heads import LinearHead, MlpHead
from pretrain.model.hybrid import HybridEmbedding, ResNetV2
from pretrain.model.pool import AttentionPool
from pretrain.model.resize import Geometry
from pretrain.model.variants import Architecture, resolve
from pretrain.model.vit import VisionTransformer


class Classifier(nn.Module):
    """Vision Transformer with a classification head (arXiv 2010.11929, section 3).

    mean, std: of pixels in [0, 1], for each channel. With max_tiles above 1 an image may consist of
    several tiles, whose places are learned as in torchtune; with one tile it is exactly the paper's
    model. config.pool: `cls`, the mean over the class tokens of the image's tiles; `mean`, over all
    its patches; or `map`, an AttentionPool over them (neither has a class token). Registers are left
    out of every pool. Raises UsageError for a configuration that does not fit
    together.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        tile_size: int,
        max_tiles: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        arch = resolve(config)
        self.config = config
        self.tile_size = tile_size
        self.num_classes = num_classes
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.geometry = Geometry(
            grid=(arch.grid(tile_size),) * 2,
            max_tiles=max_tiles,
            prefix=int(config.pool == "cls"),
        )
        self.encoder = _encoder(config, arch, tile_size, max_tiles)
        self.pool = (
            AttentionPool(arch.embed_dim, arch.num_heads, arch.mlp_dim, config.activation, config.norm_eps)
            if config.pool == "map"
            else None
        )
        if config.head == "linear":
            self.head = LinearHead(arch.embed_dim, num_classes, config.head_bias)
        else:
            hidden = config.head_hidden or arch.embed_dim
            self.head = MlpHead(arch.embed_dim, hidden, num_classes, config.head_activation, config.head_bias)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def forward(self, batch: TileBatch | Tensor) -> Tensor:
        """Logits, float32 (B, num_classes).

        batch: a TileBatch, or images of one tile (B, C, S, S), S the tile size. uint8 pixels are
        normalised here; floating ones are taken as normalised. ValueError for another size.
        """
        return self.head(self.represent(batch)).float()

    def represent(self, batch: TileBatch | Tensor) -> Tensor:
        """What the head sees: (B, D)."""
        if isinstance(batch, Tensor):
            tiles, grid = batch, torch.ones(len(batch), 2, dtype=torch.int64, device="cpu")
        else:
            tiles, grid = batch.tiles, batch.grid
        if len(tiles) != grid.prod(1).sum():
            raise ValueError(f"{len(tiles)} tiles do not fit a grid of {grid.prod(1).sum()}")
        if grid.prod(1).max() > self.geometry.max_tiles:
            raise ValueError(
                f"an image has {grid.prod(1).max()} tiles, "
                f"but this model is for at most {self.geometry.max_tiles}"
            )
        packing = self.encoder.packing(grid, tiles.device)
        x, _ = self.encoder.encode(self._normalise(packing.pack(tiles)), packing)
        if self.config.pool == "cls":
            return packing.image_means(x[:, 0])
        patches = x[:, self.encoder.prefix :]
        if self.pool is not None:
            return packing.unpack_images(self.pool(patches, packing))
        return packing.image_means(patches.mean(1))

    def _normalise(self, tiles: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 tiles."""
        if tiles.is_floating_point():
            return tiles
        mean, std = (
            to_device(255 * torch.tensor(values, device="cpu"), tiles.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (tiles - mean) / std


def _encoder(config: ModelConfig, arch: Architecture, tile_size: int, max_tiles: int) -> VisionTransformer:
    positions = {
        "embed_dim": arch.embed_dim,
        "tile_size": tile_size,
        "patch_size": arch.stride,
        "class_token": config.pool == "cls",
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
        class_token=config.pool == "cls",
        patch_bias=True,
        pre_norm=False,
        norm_eps=config.norm_eps,
        class_token_std=0.0,
        dropout=config.dropout,
        drop_path=config.drop_path,
        registers=config.registers,
        patch_embed=(
            HybridEmbedding(ResNetV2(arch.backbone), arch.patch_size, arch.embed_dim)
            if arch.backbone is not None
            else None
        ),
    )
