"""Floating-point operations of a Classifier, exactly: two for each multiply-add of a matrix product.

Counted as torch.utils.flop_counter counts: matrix products, convolutions and attention; no biases, norms
or activations. Nothing here imports torch.
"""

from __future__ import annotations

from pretrain.config import ModelConfig
from pretrain.model.variants import Architecture, resolve


def forward_flops(config: ModelConfig, *, tile_size: int, num_classes: int, tiles: int = 1) -> int:
    """Operations of one forward pass of one image of `tiles` tiles."""
    arch = resolve(config)
    width = arch.embed_dim
    patches = tiles * arch.grid(tile_size) ** 2
    tokens = patches + (tiles if config.pool == "cls" else 0)
    # q, k, v and the output projection; scores and their sum over the values; the MLP.
    block = tokens * (4 * width**2 + 2 * tokens * width + 2 * width * arch.mlp_dim)
    if config.head == "linear":
        head = width * num_classes
    else:
        hidden = config.head_hidden or width
        head = width * hidden + hidden * num_classes
    embed = _embedding(arch, tile_size, patches, tiles)
    return 2 * (embed + arch.num_layers * block + head)


def training_flops(config: ModelConfig, *, tile_size: int, num_classes: int, tiles: int = 1) -> int:
    """Forward and backward: three times the forward pass, without recomputation."""
    return 3 * forward_flops(config, tile_size=tile_size, num_classes=num_classes, tiles=tiles)


def _embedding(arch: Architecture, tile_size: int, patches: int, tiles: int) -> int:
    """Multiply-adds from pixels to patch tokens."""
    if arch.backbone is None:
        return patches * 3 * arch.patch_size**2 * arch.embed_dim
    raise NotImplementedError
