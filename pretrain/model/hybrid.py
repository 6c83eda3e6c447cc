"""A ResNet before the Transformer (arXiv 2010.11929, section 3.1, "Hybrid Architecture").

It is the ResNetV2 of Big Transfer (arXiv 1912.11370) as the Vision Transformer uses it:
convolutions with standardised weights (arXiv 1903.10520), GroupNorm instead of BatchNorm, no bias,
norms after convolutions, and TensorFlow's padding SAME. `BackboneConfig` has a key for everything in
which other implementations differ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import BackboneConfig
from .block import ACTIVATIONS
from .embeddings import PatchEmbedding
from .init import lecun_normal, reset, zeros
from .variants import middle_width, stage_strides


class StandardizedConv(nn.Conv2d):
    """A convolution whose weight is standardised for every output channel (arXiv 1903.10520).

    standardize: `var`, (w - mean) / √(var + 1e-8), or `std`, (w - mean) / (std + 1e-5), which is Google's.
    padding: `same`, as in TensorFlow, or `symmetric`, equal at both ends.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        standardize: str = "var",
        padding: str = "same",
    ) -> None:
        border = ((stride - 1) + dilation * (kernel - 1)) // 2 if padding == "symmetric" else 0
        super().__init__(channels_in, channels_out, kernel, stride, border, dilation, bias=False)
        self.standardize = standardize
        self.same = padding == "same"
        self.init_rules = {"weight": lecun_normal}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.kernel_size[0], self.stride[0], self.dilation[0])
        return F.conv2d(
            x,
            self.standardized(),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )

    def standardized(self) -> Tensor:
        """The weight that the convolution uses: (out, in, kernel, kernel)."""
        if self.standardize == "var":
            # The formula is that of a LayerNorm, which computes its statistics in float32.
            return F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)
        std, mean = torch.std_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / (std + 1e-5)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the last norm begins with scale 0.

    (T, channels_in, h, w) -> (T, channels_out, h / stride, w / stride), rounded up. project: whether the
    shortcut is a projection, as in the first unit of a stage.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        project: bool,
        config: BackboneConfig,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        middle = middle_width(channels_out)
        self.activation = ACTIVATIONS[config.activation]
        self.conv1 = _conv(config, channels_in, middle, 1)
        self.norm1 = _norm(middle, config)
        self.conv2 = _conv(config, middle, middle, 3, stride, dilation)
        self.norm2 = _norm(middle, config)
        self.conv3 = _conv(config, middle, channels_out, 1)
        self.norm3 = _norm(channels_out, config)
        self.shortcut = (
            nn.Sequential(_conv(config, channels_in, channels_out, 1, stride), _norm(channels_out, config))
            if project
            else nn.Identity()
        )
        self.init_rules = {"norm3.weight": zeros}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.activation(self.norm1(self.conv1(x)))
        branch = self.activation(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        return self.activation(self.shortcut(x) + branch)


class PreactivationBottleneck(nn.Module):
    """The convolutions of a Bottleneck, each behind its norm and activation (arXiv 1603.05027).

    Shapes and arguments as in Bottleneck. The shortcut's projection follows the first norm and has no norm
    of its own.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        project: bool,
        config: BackboneConfig,
        dilation: int = 1,  # not used: in transformers too, the kernels of this unit do not dilate
    ) -> None:
        super().__init__()
        middle = middle_width(channels_out)
        self.activation = ACTIVATIONS[config.activation]
        self.norm1 = _norm(channels_in, config)
        self.conv1 = _conv(config, channels_in, middle, 1)
        self.norm2 = _norm(middle, config)
        self.conv2 = _conv(config, middle, middle, 3, stride)
        self.norm3 = _norm(middle, config)
        self.conv3 = _conv(config, middle, channels_out, 1)
        self.shortcut = (
            nn.Sequential(_conv(config, channels_in, channels_out, 1, stride)) if project else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.norm1(x))
        branch = self.conv1(active)
        branch = self.conv2(self.activation(self.norm2(branch)))
        branch = self.conv3(self.activation(self.norm3(branch)))
        return branch + (x if self.shortcut is None else self.shortcut(active))


class ResNetV2(nn.Module):
    """Tiles (T, C, H, W) -> features (T, channels, h, w); `variants.feature_side` gives h and w."""

    def __init__(self, config: BackboneConfig, in_channels: int = 3) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation]
        self.conv_root = _conv(config, in_channels, config.stem, 7, 2)
        preactivation = config.unit == "preactivation"
        self.norm_root = None if preactivation else _norm(config.stem, config)
        unit_type = PreactivationBottleneck if preactivation else Bottleneck
        self.stages = nn.ModuleList()
        channels = config.stem
        plan = zip(config.depths, config.widths, stage_strides(config), strict=True)
        for depth, width, (stride, dilation) in plan:
            first = 1 if dilation <= 2 else 2
            units = nn.Sequential()
            for unit in range(depth):
                begins = unit == 0
                units.append(
                    unit_type(
                        channels,
                        width,
                        stride if begins else 1,
                        begins,
                        config,
                        first if begins else dilation,
                    )
                )
                channels = width
            self.stages.append(units)
        self.channels = channels

    def stem(self, tiles: Tensor) -> Tensor:
        """(T, C, H, W) -> (T, stem, H / 4, W / 4)."""
        x = self.conv_root(tiles.to(self.conv_root.weight.dtype))
        if self.config.padding != "same":
            x = F.pad(x, (1, 1, 1, 1))
        if self.norm_root is not None:
            x = self.activation(self.norm_root(x))
        # The border is 0, not -inf: behind ReLU both give the same, and transformers uses 0 elsewhere too.
        return F.max_pool2d(pad_same(x, 3, 2) if self.config.pool_padding else x, 3, 2)

    def forward(self, tiles: Tensor) -> Tensor:
        x = self.stem(tiles)
        for stage in self.stages:
            x = stage(x)
        return x


class HybridEmbedding(nn.Module):
    """Tiles -> patches of the backbone's features: (T, C, H, W) -> (T, patches, D).

    patch_size: in cells of the last feature map.
    """

    def __init__(self, backbone: ResNetV2, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = PatchEmbedding(patch_size, embed_dim, backbone.channels)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.projection(self.backbone(tiles))


def pad_same(x: Tensor, kernel: int, stride: int, dilation: int = 1) -> Tensor:
    """(..., h, w) with zeros around it, so that ceil(side / stride) windows fit: TensorFlow's SAME.

    Of an odd number of zeros, one more lies at the end than at the beginning.
    """
    sides = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x


def _conv(config: BackboneConfig, *sizes: int) -> StandardizedConv:
    """sizes: channels_in, channels_out, kernel, stride and dilation of the convolution."""
    return StandardizedConv(*sizes, standardize=config.standardize, padding=config.padding)


def _norm(channels: int, config: BackboneConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, channels, eps=config.norm_eps)
