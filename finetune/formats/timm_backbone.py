"""timm's ResNetV2, which its hybrids have before the Transformer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from pretrain.config.schema import BackboneConfig
from pretrain.model.hybrid import ResNetV2

from .entries import Entry, Weights, affine, same
from .names import units_of

BACKBONE = "patch_embed.backbone."  # before the names of its parameters


def infer_resnet(weights: Weights) -> dict[str, Any]:
    """The arguments of timm's ResNetV2 with these weights; ValueError if the first convolution is missing."""
    depths: dict[int, int] = {}
    widths: dict[int, int] = {}
    for name, value in weights.items():
        found = re.fullmatch(re.escape(BACKBONE) + r"stages\.(\d+)\.blocks\.(\d+)\.conv3\.weight", name)
        if found:
            stage, unit = map(int, found.groups())
            depths[stage] = max(depths.get(stage, 0), unit + 1)
            widths[stage] = len(value)
    root = BACKBONE + ("stem." if depths else "") + "conv.weight"
    if root not in weights:
        raise ValueError(f"the weights lack {root!r}, which this configuration needs")
    stages = sorted(depths)
    return {
        "layers": [depths[stage] for stage in stages],
        "channels": [widths[stage] for stage in stages],
        "stem_chs": len(weights[root]),
    }


def read_resnet(resnet: dict[str, Any]) -> BackboneConfig:
    """Our configuration of timm's ResNetV2 with these arguments."""
    return BackboneConfig(
        depths=list(resnet["layers"]), widths=list(resnet["channels"]), stem=resnet["stem_chs"]
    )


def resnet_arguments(backbone: BackboneConfig) -> dict[str, Any]:
    """The arguments of timm's ResNetV2 that has the sizes of `backbone`."""
    return {
        "layers": list(backbone.depths),
        "channels": list(backbone.widths),
        "stem_chs": backbone.stem,
    }


def resnet_entries(backbone: ResNetV2) -> Iterator[Entry]:
    """All parameters of `backbone`."""
    ours = "encoder.patch_embed.backbone."
    root = BACKBONE + ("stem." if len(backbone.stages) else "")
    yield same(f"{ours}conv_root.weight", f"{root}conv.weight")
    yield from affine(f"{ours}norm_root", f"{root}norm")
    for stage, index, unit in units_of(backbone):
        our, their = f"{ours}stages.{stage}.{index}.", f"{BACKBONE}stages.{stage}.blocks.{index}."
        if isinstance(unit.shortcut, nn.Sequential):
            yield same(f"{our}shortcut.0.weight", f"{their}downsample.conv.weight")
            yield from affine(f"{our}shortcut.1", f"{their}downsample.norm")
        for number in (1, 2, 3):
            yield same(f"{our}conv{number}.weight", f"{their}conv{number}.weight")
            yield from affine(f"{our}norm{number}", f"{their}norm{number}")
