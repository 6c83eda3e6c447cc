"""ResNetV2 of Big Transfer (arXiv 1912.11370) as it stands before a Vision Transformer.

Convolutions with standardised weights and SAME padding, each with a GroupNorm (arXiv 1803.08494) behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import convolve, largest, pad_same, relu


@dataclass(frozen=True)
class Conv:
    """A convolution, kernel (O, C, h, w), and the scale and shift of the norm behind it."""

    kernel: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Unit:
    """Convolutions of 1x1, 3x3 and 1x1, and that of the shortcut where it has one."""

    convs: tuple[Conv, Conv, Conv]
    shortcut: Conv | None


@dataclass(frozen=True)
class Style:
    """What implementations differ in.

    by_deviation: kernels are divided by std + 1e-5 (Google), not by √(var + 1e-8). eps: of the norms.
    """

    groups: int = 32
    eps: float = 1e-5
    by_deviation: bool = False


def middle_width(channels: int) -> int:
    """Channels between the 1x1 convolutions: a quarter, to the nearest multiple of 8."""
    nearest = max(8, (channels // 4 + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels / 4 else nearest


def shapes_as_named(
    prefix: str, conv: str, norm: str, unit: str, channels: int, stages: Iterable[tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as transformers and timm name them: everything behind `prefix`.

    conv, norm: of the stem, with `channels` channels. unit: takes the numbers of stage and unit. stages: the
    units and channels of each.
    """
    found: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, *size: int) -> None:
        found.update({f"{prefix}{conv}.weight": size})
        found.update({f"{prefix}{norm}.{part}": size[:1] for part in ("weight", "bias")})

    add(conv, norm, channels, 3, 7, 7)
    for stage, (depth, out) in enumerate(stages):
        for index in range(depth):
            name, middle = unit.format(stage, index), middle_width(out)
            if index == 0:
                add(f"{name}downsample.conv", f"{name}downsample.norm", out, channels, 1, 1)
            add(f"{name}conv1", f"{name}norm1", middle, channels, 1, 1)
            add(f"{name}conv2", f"{name}norm2", middle, middle, 3, 3)
            add(f"{name}conv3", f"{name}norm3", out, middle, 1, 1)
            channels = out
    return found


def stem(images: Tensor, root: Conv, style: Style) -> Tensor:
    x = relu(_apply(images, root, 2, style))
    return largest(pad_same(x, 3, 2), 3, 2)


def features(images: Tensor, root: Conv, stages: list[list[Unit]], style: Style) -> Tensor:
    """Images (B, C, H, W) -> the last feature map. All stages but the first halve it in their first unit."""
    x = stem(images, root, style)
    for number, units in enumerate(stages):
        for index, unit in enumerate(units):
            stride = 2 if number > 0 and index == 0 else 1
            first, second, third = unit.convs
            branch = relu(_apply(x, first, 1, style))
            branch = relu(_apply(branch, second, stride, style))
            branch = _apply(branch, third, 1, style)
            x = relu(branch + (x if unit.shortcut is None else _apply(x, unit.shortcut, stride, style)))
    return x


def _apply(x: Tensor, conv: Conv, stride: int, style: Style) -> Tensor:
    kernel = conv.kernel - conv.kernel.mean((1, 2, 3), keepdim=True)
    variance = (kernel**2).mean((1, 2, 3), keepdim=True)
    kernel /= torch.sqrt(variance) + 1e-5 if style.by_deviation else torch.sqrt(variance + 1e-8)
    x = convolve(pad_same(x, kernel.shape[-1], stride), kernel, stride)
    normalised = []
    for group in x.chunk(style.groups, 1):
        centred = group - group.mean((1, 2, 3), keepdim=True)
        variance = (centred**2).mean((1, 2, 3), keepdim=True)
        normalised.append(centred / torch.sqrt(variance + style.eps))
    return torch.cat(normalised, 1) * conv.scale[:, None, None] + conv.shift[:, None, None]
