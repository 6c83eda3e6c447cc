"""The exact number of floating-point operations of a model: two for each multiply-add.

As in torch.utils.flop_counter, matrix products, convolutions and attention count; biases, norms and
activations do not. Nothing here imports torch.
"""

from __future__ import annotations

from ..config.schema import BackboneConfig, Config, ModelConfig
from .variants import Architecture, corrupted, middle_width, resolve, stage_strides, stem_sides


def forward_flops(
    config: ModelConfig, *, tile_size: int, num_classes: int, tiles: int = 1, masked: bool = False
) -> int:
    """Operations of one forward pass of one image of `tiles` tiles.

    tile_size: pixels along a side. masked: of `masked.MaskedPatches`, whose linear head sees the corrupted
    half of the patches.
    """
    arch = resolve(config)
    width = arch.embed_dim
    patches = tiles * arch.grid(tile_size) ** 2
    tokens = patches + tiles * (arch.class_token + config.registers)
    matrices = 3 if config.mlp == "swiglu" else 2
    # q, k, v and the output projection; scores and their sum over the values; the MLP.
    block = tokens * (4 * width**2 + 2 * tokens * width + matrices * width * arch.mlp_dim)
    pool = 0
    if config.pool == "map" and not masked:
        # Keys and values, scores and their sum, the output projection, the MLP. The query does not
        # count: it is computed from the probe, once for a whole batch.
        pool = patches * (2 * width**2 + 2 * width) + width**2 + 2 * width * arch.mlp_dim
    if masked:
        head = corrupted(patches) * width * num_classes
    elif config.head == "linear":
        head = width * num_classes
    else:
        hidden = config.head_hidden or width
        head = width * hidden + hidden * num_classes
    embed = _embedding(arch, tile_size, patches, tiles)
    return 2 * (embed + arch.num_layers * block + pool + head)


def training_flops(
    config: ModelConfig, *, tile_size: int, num_classes: int, tiles: int = 1, masked: bool = False
) -> int:
    """Operations of a forward and a backward pass of one image, without recomputation.

    Three times the forward pass, less the gradient of the pixels, which is never computed.
    """
    forward = forward_flops(config, tile_size=tile_size, num_classes=num_classes, tiles=tiles, masked=masked)
    return 3 * forward - 2 * _first(resolve(config), tile_size, tiles)


def training_flops_by_tiles(config: Config, num_classes: int) -> dict[int, int]:
    """`training_flops` of an image, for each number of tiles that an image of the data can have."""
    size, masked = config.data.tile_size, config.objective.name == "masked_patches"
    return {
        tiles: training_flops(
            config.model, tile_size=size, num_classes=num_classes, tiles=tiles, masked=masked
        )
        for tiles in range(1, config.data.max_tiles + 1)
    }


def _first(arch: Architecture, tile_size: int, tiles: int) -> int:
    """Multiply-adds of the layer that reads the pixels."""
    if arch.backbone is None:
        return tiles * arch.grid(tile_size) ** 2 * 3 * arch.patch_size**2 * arch.embed_dim
    return tiles * stem_sides(arch.backbone, tile_size)[0] ** 2 * 3 * 7**2 * arch.backbone.stem


def _embedding(arch: Architecture, tile_size: int, patches: int, tiles: int) -> int:
    """Multiply-adds from pixels to patch tokens."""
    if arch.backbone is None:
        return _first(arch, tile_size, tiles)
    features = arch.backbone.widths[-1] if arch.backbone.widths else arch.backbone.stem
    projection = patches * features * arch.patch_size**2 * arch.embed_dim
    return tiles * _backbone(arch.backbone, tile_size) + projection


def _backbone(backbone: BackboneConfig, tile_size: int) -> int:
    """Multiply-adds of the convolutions of `hybrid.ResNetV2` for one tile."""
    convolved, side = stem_sides(backbone, tile_size)
    count = convolved**2 * 3 * 7**2 * backbone.stem
    channels = backbone.stem
    plan = zip(backbone.depths, backbone.widths, stage_strides(backbone), strict=True)
    for depth, width, (stride, _) in plan:
        middle = middle_width(width)
        for unit in range(depth):
            count += side**2 * channels * middle
            if unit == 0:
                side = -(-side // stride)
                count += side**2 * channels * width  # the shortcut
            count += side**2 * (9 * middle**2 + middle * width)
            channels = width
    return count
