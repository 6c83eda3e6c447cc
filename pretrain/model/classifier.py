"""The image classifier: encoder, pool, head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
from .heads import AttentionPool, LinearHead, MlpHead, Pooler
from .hybrid import HybridEmbedding, ResNetV2
from .inspection import Inspection, in_full, inspect
from .packing import Packing, Watch, to_device
from .resize import Geometry, adapt_positions, is_position_table
from .variants import Architecture, resolve
from .vit import VisionTransformer


class Classifier(nn.Module):
    """Vision Transformer with a classification head (arXiv 2010.11929, section 3).

    mean, std: of pixels in [0, 1], for each channel. With max_tiles above 1 an image may consist of
    several tiles, whose places are learned as in torchtune; with one tile it is exactly the paper's
    model. config.pool: `cls`, the mean over the class tokens of the image's tiles; `mean`, over all
    its patches; or `map`, an AttentionPool over them (neither has a class token). Registers are left
    out of every pool. Raises UsageError for a configuration that does not fit
    together.

    in_channels: of the images. num_classes: 0 leaves out the last linear layer, so that logits are
    what it would see. mask_token: for `inspect` and pretraining with masked patches. pooler: a
    Pooler beside the head, which only `inspect` looks at.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        tile_size: int | tuple[int, int],
        max_tiles: int,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        in_channels: int = 3,
        mask_token: bool = False,
        pooler: bool = False,
    ) -> None:
        super().__init__()
        arch = resolve(config)
        self.config = config
        self.tile_size = tile_size
        self.num_classes = num_classes
        self.watch: Watch | None = None  # computes attention instead, for looking at the model
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.geometry = Geometry(
            grid=tuple(arch.grid(side) for side in sides(tile_size)),
            max_tiles=max_tiles,
            prefix=int(arch.class_token),
        )
        if max_tiles > 1 and config.final_norm == "pooled":
            raise UsageError(
                "model.final_norm=pooled needs data.max_tiles=1: tiles are placed behind the norm"
            )
        self.encoder = _encoder(config, arch, tile_size, self.geometry, in_channels, mask_token)
        self.pool = (
            AttentionPool(arch.embed_dim, arch.num_heads, arch.mlp_dim, config.activation, config.norm_eps)
            if config.pool == "map"
            else None
        )
        self.pool_norm = (
            nn.LayerNorm(arch.embed_dim, eps=config.norm_eps)
            if config.final_norm == "pooled"
            else nn.Identity()
        )
        self.pooler = Pooler(arch.embed_dim) if pooler else None
        if config.head == "linear":
            head = LinearHead(arch.embed_dim, num_classes, config.head_bias) if num_classes else nn.Identity()
            self.head = head
        else:
            hidden = config.head_hidden or arch.embed_dim
            self.head = MlpHead(arch.embed_dim, hidden, num_classes, config.head_activation, config.head_bias)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def forward(self, batch: TileBatch | Tensor) -> Tensor:
        """Logits, float32 (B, num_classes); float64 from a model in float64.

        batch: a TileBatch, or images of one tile (B, C, S, S), S the tile size. uint8 pixels are
        normalised here; floating ones are taken as normalised. ValueError for another shape.
        """
        return in_full(self.head(self.represent(batch)))

    def inspect(
        self, batch: TileBatch | Tensor, mask: Tensor | None = None, head_mask: Tensor | None = None
    ) -> Inspection:
        """What the model computes on the way to its logits; see `inspection.inspect`."""
        return inspect(self, batch, mask, head_mask)

    def resized(self, tile_size: int | tuple[int, int], mode: str = "bilinear") -> Classifier:
        """The same classifier for images of another size.

        mode: how position tables are interpolated, of `resize.resize_grid`. All other parameters are
        shared with this one.
        """
        with torch.device("meta"):
            other = Classifier(
                self.config,
                tile_size=tile_size,
                max_tiles=self.geometry.max_tiles,
                num_classes=self.num_classes,
                mean=self.mean,
                std=self.std,
                in_channels=self.encoder.in_channels,
                mask_token=self.encoder.mask_token is not None,
                pooler=self.pooler is not None,
            )
        state = {
            name: adapt_positions(name, value.detach(), self.geometry, other.geometry, mode)
            if is_position_table(name)
            else value
            for name, value in self.named_parameters()
        }
        other.load_state_dict(state, assign=True)
        return other.train(self.training)

    def represent(self, batch: TileBatch | Tensor) -> Tensor:
        """What the head sees: (B, D)."""
        tiles, packing = self.unpack(batch)
        x, _ = self.encoder.encode(tiles, packing)
        return self.pooled(x, packing)

    def unpack(self, batch: TileBatch | Tensor) -> tuple[Tensor, Packing]:
        """Normalised tiles in packed order, and their packing; ValueError as `forward` says."""
        if isinstance(batch, Tensor):
            if not batch.ndim or not len(batch):
                raise ValueError(f"images must be (B, C, S, S) and at least one, got {tuple(batch.shape)}")
            tiles, grid = batch, torch.ones(len(batch), 2, dtype=torch.int64, device="cpu")
        else:
            tiles, grid = batch.tiles, batch.grid
        self.encoder.check(tiles)
        if len(tiles) != grid.prod(1).sum():
            raise ValueError(f"{len(tiles)} tiles do not fit a grid of {int(grid.prod(1).sum())}")
        if grid.prod(1).max() > self.geometry.max_tiles:
            raise ValueError(
                f"an image has {grid.prod(1).max()} tiles, "
                f"but this model is for at most {self.geometry.max_tiles}"
            )
        packing = replace(self.encoder.packing(grid, tiles.device), watch=self.watch)
        return self._normalise(packing.pack(tiles)), packing

    def pooled(self, x: Tensor, packing: Packing) -> Tensor:
        """Tokens (T, n, D) in packed order -> (B, D) in the order of the batch."""
        if self.config.pool == "cls":
            pooled = packing.image_means(x[:, 0])
        elif self.pool is not None:
            pooled = packing.unpack_images(self.pool(x[:, self.encoder.prefix :], packing))
        else:
            pooled = packing.image_means(x[:, self.encoder.prefix :].mean(1))
        return self.pool_norm(pooled)

    def _normalise(self, tiles: Tensor) -> Tensor:
        """(pixel / 255 - mean) / std of uint8 tiles."""
        if tiles.is_floating_point():
            return tiles
        mean, std = (
            to_device(255 * torch.tensor(values, device="cpu"), tiles.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (tiles - mean) / std


def _encoder(
    config: ModelConfig,
    arch: Architecture,
    tile_size: int | tuple[int, int],
    geometry: Geometry,
    in_channels: int,
    mask_token: bool,
) -> VisionTransformer:
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
