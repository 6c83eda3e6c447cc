"""A ResNet before the Transformer (arXiv 2010.11929, section 3.1, "Hybrid Architecture").

It is the ResNetV2 of Big Transfer (arXiv 1912.11370) as the Vision Transformer uses it:
convolutions with standardised weights (arXiv 1903.10520), GroupNorm of 32 groups instead of
BatchNorm, no bias, norms after convolutions, and padding as TensorFlow's SAME.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.embeddings import PatchEmbedding
from pretrain.model.init import lecun_normal, reset, zeros
from pretrain.model.variants import BACKBONE_WIDTH

GROUPS = 32


class StandardizedConv(nn.Conv2d):
    """A convolution with SAME padding whose weight is standardised in every output channel."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, bias=False)
        self.init_rules = {"weight": lecun_normal}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        # Standardising is a LayerNorm over the inputs of a channel, with statistics in float32.
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)
        return F.conv2d(pad_same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the last norm begins at scale 0.

    (T, channels_in, h, w) -> (T, 4 · width, h / stride, w / stride), rounded up. The shortcut is a
    projection in the first unit of a stage (`project`).
    """

    def __init__(self, channels_in: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        channels_out = 4 * width
        self.conv1 = StandardizedConv(channels_in, width, 1)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv2 = StandardizedConv(width, width, 3, stride)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv3 = StandardizedConv(width, channels_out, 1)
        self.norm3 = nn.GroupNorm(GROUPS, channels_out)
        self.shortcut = (
            nn.Sequential(
                StandardizedConv(channels_in, channels_out, 1, stride),
                nn.GroupNorm(GROUPS, channels_out),
            )
            if project
            else nn.Identity()
        )
        self.init_rules = {"norm3.weight": zeros}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x)))
        branch = F.relu(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        return F.relu(self.shortcut(x) + branch)


class ResNetV2(nn.Module):
    """Tiles (T, C, S, S) -> features (T, 4 · width · 2^(stages - 1), S / stride, S / stride).

    depths: units of each stage; the stride is 4 before the first stage and doubles after it.
    """

    def __init__(self, depths: tuple[int, ...], width: int = BACKBONE_WIDTH, in_channels: int = 3) -> None:
        super().__init__()
        self.conv_root = StandardizedConv(in_channels, width, 7, stride=2)
        self.norm_root = nn.GroupNorm(GROUPS, width)
        self.stages = nn.ModuleList()
        channels = width
        for stage, depth in enumerate(depths):
            units = nn.Sequential()
            for unit in range(depth):
                stride = 2 if stage > 0 and unit == 0 else 1
                units.append(Bottleneck(channels, width * 2**stage, stride, project=unit == 0))
                channels = 4 * width * 2**stage
            self.stages.append(units)
        self.channels = channels

    def forward(self, tiles: Tensor) -> Tensor:
        x = F.relu(self.norm_root(self.conv_root(tiles.to(self.conv_root.weight.dtype))))
        x = F.max_pool2d(pad_same(x, 3, 2), 3, 2)  # x >= 0, so that a border of zeros never wins
        for stage in self.stages:
            x = stage(x)
        return x


class HybridEmbedding(nn.Module):
    """Patches of the backbone's features: (T, C, S, S) -> (T, patches, D).

    patch_size counts cells of the last feature map.
    """

    def __init__(self, backbone: ResNetV2, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = PatchEmbedding(patch_size, embed_dim, backbone.channels)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.projection(self.backbone(tiles))


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around (..., h, w), the odd one last: then ceil(side / stride) windows fit."""
    sides = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x
