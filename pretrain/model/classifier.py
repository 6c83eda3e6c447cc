"""The image classifier: encoder, pool, head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from data_tools.tile_batch import TileBatch

from ..config.schema import ModelConfig
from .encoder import Pixels, build_encoder, geometry_of, pooled_norm
from .heads import AttentionPool, LinearHead, MlpHead, Pooler, in_full
from .loss import Output, label_loss
from .packing import Packing, Watch
from .resize import adapt_positions, is_position_table
from .variants import resolve


class Classifier(nn.Module):
    """Vision Transformer with a classification head (arXiv 2010.11929, section 3).

    tile_size: pixels along a side, or (height, width). max_tiles: with more than 1 an image may consist
    of several tiles, whose positions are learned as in torchtune; with 1 it is exactly the paper's model.
    num_classes: 0 leaves out the last linear layer, so that the logits are its inputs. mean, std: of
    pixels in [0, 1], for each channel. in_channels: of the images. mask_token: whether there is one, for
    the mask of `inspect`. pooler: whether there is a Pooler beside the head, which only `inspect` uses.

    config.pool: `cls`, the mean over the class tokens of the image's tiles; `mean`, the mean over all its
    patches; `map`, an AttentionPool over them. By default only `cls` has a class token. No pool includes
    registers. Raises UsageError for a configuration that does not fit together.
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
        self.watch: Watch | None = None  # as in `Packing`
        self.pixels = Pixels(tuple(mean), tuple(std), max_tiles)
        self.geometry = geometry_of(arch, tile_size, max_tiles)
        self.encoder = build_encoder(config, arch, tile_size, self.geometry, in_channels, mask_token)
        self.pool = (
            AttentionPool(
                arch.embed_dim, arch.num_heads, arch.mlp_dim, config.activation, config.norm_eps, config.norm
            )
            if config.pool == "map"
            else None
        )
        self.pool_norm = pooled_norm(config, arch)
        self.pooler = Pooler(arch.embed_dim) if pooler else None
        self.head: LinearHead | MlpHead | nn.Identity
        if config.head != "linear":
            hidden = config.head_hidden or arch.embed_dim
            self.head = MlpHead(arch.embed_dim, hidden, num_classes, config.head_activation, config.head_bias)
        elif num_classes:
            self.head = LinearHead(arch.embed_dim, num_classes, config.head_bias)
        else:
            self.head = nn.Identity()

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel that is subtracted from pixels in [0, 1]."""
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel by which pixels are then divided."""
        return self.pixels.std

    @property
    def blocks(self) -> nn.ModuleList:
        """The Transformer blocks, in order."""
        return self.encoder.layers

    @overload
    def forward(self, batch: TileBatch | Tensor) -> Tensor: ...

    @overload
    def forward(
        self,
        batch: TileBatch | Tensor,
        labels: Tensor | None = None,
        return_dict: bool = False,
        interpolate_pos_encoding: bool = False,
    ) -> Any: ...

    def forward(
        self,
        batch: TileBatch | Tensor,
        labels: Tensor | None = None,
        return_dict: bool = False,
        interpolate_pos_encoding: bool = False,
    ) -> Any:
        """Logits, float32 (B, num_classes); float64 from a model in float64.

        batch: a TileBatch, or images of one tile (B, C, S, S), S the tile size. uint8 pixels are
        normalised here; floating-point ones must be normalised already. ValueError for another shape.

        As transformers' models: with labels the result is (loss, logits), see `loss.label_loss`; with
        return_dict an `Output` of them. interpolate_pos_encoding: images may have another size.
        """
        model = self
        if interpolate_pos_encoding and isinstance(batch, Tensor):
            model = self.resized((batch.shape[-2], batch.shape[-1]), "bicubic_centers")
        logits = in_full(model.head(model.represent(batch)))
        if labels is None:
            return Output(logits=logits) if return_dict else logits
        loss = label_loss(logits, labels)
        return Output(loss=loss, logits=logits) if return_dict else (loss, logits)

    def resized(self, tile_size: int | tuple[int, int], mode: str = "bilinear") -> Classifier:
        """The same classifier for images of another size.

        mode: how position tables are interpolated, as in `resize.resize_grid`. All other parameters are
        shared with this classifier.
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
        """The head's input (B, D); batch as in `forward`."""
        tiles, packing = self.unpack(batch)
        x, _ = self.encoder.encode(tiles, packing)
        return self.pooled(x, packing)

    def unpack(self, batch: TileBatch | Tensor) -> tuple[Tensor, Packing]:
        """Normalised tiles in packed order, and their packing; ValueError as `forward` says."""
        return self.pixels.unpack(batch, self.encoder, self.watch)

    def pooled(self, x: Tensor, packing: Packing) -> Tensor:
        """The head's input (B, D), in the order of the batch, from tokens (T, n, D) in packed order."""
        if self.config.pool == "cls":
            pooled = packing.image_means(x[:, 0])
        elif self.pool is not None:
            pooled = packing.unpack_images(self.pool(x[:, self.encoder.prefix :], packing))
        else:
            pooled = packing.image_means(x[:, self.encoder.prefix :].mean(1))
        return self.pool_norm(pooled)
