"""The published sizes, and the architecture that a model configuration stands for. Needs no torch.

A name consists of a size and a patch size: vit_s16, vit_so400m14, vit_22b14; any patch size is
possible. Hybrids have a ResNet before the Transformer, and only the names in HYBRIDS: hybrid_r50_b16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import TypeVar

from data_tools.errors import UsageError

from ..config.limits import check_limits
from ..config.schema import BackboneConfig, ModelConfig

# Width, depth, MLP, heads.
# Ti, S: arXiv 2012.12877, 2106.10270. B, L, H: 2010.11929, table 1. g, G: 2106.04560, table 2.
# So400m: 2305.13035. e: 2209.06794. 22B: 2302.05442.
SIZES = {
    "ti": (192, 12, 768, 3),
    "s": (384, 12, 1536, 6),
    "b": (768, 12, 3072, 12),
    "l": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "h": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
    "22b": (6144, 48, 24576, 48),
}

# Sizes whose blocks differ from the others. For the paper's 22B, also set model.pool=map, as it pools by
# attention, and model.norm=rms, as its norms do not subtract the mean and have no bias.
TRAITS = {"22b": {"parallel": True, "qk_norm": True, "qkv_bias": False}}

# Size of the Transformer, units in each stage of the ResNet, patch size in cells of its features
# (arXiv 2010.11929 and 2106.10270). The last number of a name is the distance of patches in pixels. Only
# R+Ti/16, a stem without stages, was published under a wrong number: its distance is 32.
HYBRIDS = {
    "hybrid_r_ti16": ("ti", (), 8),
    "hybrid_r26_s32": ("s", (2, 2, 2, 2), 1),
    "hybrid_r26_b32": ("b", (2, 2, 2, 2), 1),
    "hybrid_r50_b16": ("b", (3, 4, 9), 1),
    "hybrid_r50_l16": ("l", (3, 4, 9), 1),
    "hybrid_r50_l32": ("l", (3, 4, 6, 3), 1),
}

USUAL_NAMES = (
    *("vit_ti16", "vit_s16", "vit_s32", "vit_b8", "vit_b16", "vit_b32", "vit_l16", "vit_l32"),
    *("vit_so400m14", "vit_h14", "vit_g14", "vit_G14", "vit_e14", "vit_22b14"),
    *HYBRIDS,
)

# The classes of pretraining with masked patches (arXiv 2010.11929, appendix B.1.2): three bits each for
# red, green and blue.
COLOURS = 512

T = TypeVar("T")


@dataclass(frozen=True)
class Architecture:
    """The numbers of one model.

    backbone: a hybrid's ResNet, None for a plain Vision Transformer. patch_size: in pixels, or in a
    hybrid in cells of the backbone's last feature map.
    """

    name: str
    patch_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    class_token: bool = True
    backbone: BackboneConfig | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    parallel: bool = False

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        if self.backbone is None:
            return self.patch_size
        later = stage_strides(self.backbone)
        return self.patch_size * 4 * prod(stride for stride, _ in later)

    def grid(self, tile_size: int) -> int:
        """The number of patches along a side of a tile; UsageError if they do not fill it exactly.

        In a hybrid the patches must fill the feature map; patches of one cell fill every one.
        """
        side = tile_size if self.backbone is None else feature_side(self.backbone, max(tile_size, 1))
        if tile_size < 1 or side < self.patch_size or side % self.patch_size:
            below = max(tile_size, 0) // self.stride * self.stride
            valid = [str(size) for size in (below, below + self.stride) if size > 0]
            raise UsageError(
                f"data.tile_size is {tile_size}, but {self.name} needs a multiple of "
                f"{self.stride}: the nearest is {' or '.join(valid)}"
            )
        return side // self.patch_size


def resolve(config: ModelConfig) -> Architecture:
    """The architecture that model.name stands for; fields that the configuration sets replace its sizes.

    Raises UsageError for a name that does not exist, and for choices and numbers that are not possible.
    """
    check_limits(config, "model.")
    size, patch, depths = _row(config.name)
    if config.backbone is not None and depths is None:
        raise UsageError(f"model.backbone is for hybrids, but model.name is '{config.name}'")
    backbone = config.backbone
    if backbone is None and depths is not None:
        backbone = BackboneConfig(depths=list(depths))
    width, depth, mlp, heads = SIZES[size]
    traits = {"qkv_bias": True, "qk_norm": False, "parallel": False} | TRAITS.get(size, {})

    def chosen(given: T | None, usual: T) -> T:
        return usual if given is None else given

    arch = Architecture(
        name=config.name,
        patch_size=chosen(config.patch_size, patch),
        embed_dim=chosen(config.embed_dim, width),
        num_layers=chosen(config.num_layers, depth),
        num_heads=chosen(config.num_heads, heads),
        mlp_dim=chosen(config.mlp_dim, two_thirds(mlp) if config.mlp == "swiglu" else mlp),
        class_token=chosen(config.class_token, config.pool == "cls"),
        backbone=backbone,
        **{key: chosen(getattr(config, key), usual) for key, usual in traits.items()},
    )
    _check(config, arch)
    return arch


def stage_strides(backbone: BackboneConfig) -> list[tuple[int, int]]:
    """(stride, dilation) of each stage of a backbone, which follow a stem of stride 4."""
    plan, reached, dilation = [], 4, 1
    for stage in range(len(backbone.depths)):
        stride = 1 if stage == 0 else 2
        if reached >= backbone.output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        plan.append((stride, dilation))
    return plan


def stem_sides(backbone: BackboneConfig, side: int) -> tuple[int, int]:
    """The sides of the maps behind a backbone's first convolution and behind its pooling; side: in pixels."""
    convolved = -(-side // 2)
    pooled = convolved if backbone.padding == "same" else convolved + 2
    return convolved, -(-pooled // 2) if backbone.pool_padding else max((pooled - 3) // 2 + 1, 0)


def feature_side(backbone: BackboneConfig, side: int) -> int:
    """The side of a backbone's features for images of `side` pixels."""
    _, side = stem_sides(backbone, side)
    for stride, _ in stage_strides(backbone):
        side = -(-side // stride)
    return side


def middle_width(channels_out: int) -> int:
    """Channels inside a bottleneck: a quarter of those behind it, as a multiple of 8."""
    return multiple_of_8(channels_out / 4)


def two_thirds(width: int) -> int:
    """Two thirds of a width, as a multiple of 8 not below it: a SwiGLU of that many numbers (DINOv2's)."""
    return (width * 2 // 3 + 7) // 8 * 8


def multiple_of_8(width: float) -> int:
    """The nearest multiple of 8, at least 8, and never less than nine tenths of the width."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def corrupted(patches: int) -> int:
    """How many of an image's patches pretraining with masked patches corrupts: half, but at least one."""
    return max(1, patches // 2)


def _row(name: str) -> tuple[str, int, tuple[int, ...] | None]:
    """(size, patch size, units in each stage of the backbone or None) of a name."""
    if name in HYBRIDS:
        size, backbone, patch = HYBRIDS[name]
        return size, patch, backbone
    match = re.fullmatch(r"vit_(.+?)([1-9]\d*)", name)
    if match is None or match[1] not in SIZES:
        near = [_ours(name)] if _ours(name) else get_close_matches(name, USUAL_NAMES, n=3, cutoff=0.0)
        raise UsageError(f"model.name is '{name}', which does not exist; near it: {', '.join(near)}")
    return match[1], int(match[2]), None


def _ours(name: str) -> str:
    """Our name of what timm, transformers and others call vit_base_patch16_224, ViT-B/16 or vit_b_16."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<![a-z])G(?![a-z])", "gigantic", name).lower())
    sizes = {
        "tiny": "ti",
        "small": "s",
        "base": "b",
        "large": "l",
        "huge": "h",
        "giant": "g",
        "gigantic": "G",
    }
    known = "|".join([*sizes, *sorted(SIZES, key=len, reverse=True)])
    found = re.search(rf"(?:^|_)({known})_?(?:(r\d+)_?s|patch|p)?_?(\d+)(?:_|$)", words)
    if found is None:
        return ""
    stem = found[2] or next(iter(re.findall(r"(?:^|_)(r\d+)_", words)), "")
    ours = f"{sizes.get(found[1], found[1])}{found[3]}"
    return ours if (ours := f"hybrid_{stem}_{ours}" if stem else f"vit_{ours}") in USUAL_NAMES else ""


def _check_backbone(backbone: BackboneConfig) -> None:
    if len(backbone.depths) != len(backbone.widths):
        raise UsageError(
            f"model.backbone has {len(backbone.depths)} depths and {len(backbone.widths)} widths: "
            "give one of each for every stage"
        )
    channels = (backbone.stem, *backbone.widths, *map(middle_width, backbone.widths))
    for count in channels:
        if count % backbone.groups:
            raise UsageError(
                f"model.backbone has norms of {count} channels, which are not {backbone.groups} equal groups"
            )


def _check(config: ModelConfig, arch: Architecture) -> None:
    if arch.backbone is not None:
        _check_backbone(arch.backbone)
    if arch.embed_dim % arch.num_heads:
        raise UsageError(
            f"model.embed_dim is {arch.embed_dim}, "
            f"which cannot be divided among {arch.num_heads} heads: set model.num_heads too"
        )
    if config.pool == "cls" and not arch.class_token:
        raise UsageError("model.pool=cls needs model.class_token to be true or null")
    if config.position == "rope2d" and config.use_rope:
        raise UsageError(
            "model.use_rope is for a table of positions: leave it out with model.position=rope2d"
        )
    head = arch.embed_dim // arch.num_heads
    if (config.position == "rope2d" or config.use_rope) and head % 4:
        raise UsageError(
            f"rotary positions need heads whose width is a multiple of 4, not {head}: set model.num_heads"
        )
    if config.position == "sincos2d" and arch.embed_dim % 4:
        raise UsageError(f"model.position=sincos2d needs model.embed_dim % 4 == 0, not {arch.embed_dim}")
