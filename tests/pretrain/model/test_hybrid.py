"""ResNet and Transformer together: the numbers of Google's code."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_tools.errors import UsageError
from pretrain.config.schema import BackboneConfig, ModelConfig
from pretrain.model import Classifier
from pretrain.model.flops import forward_flops
from pretrain.model.hybrid import ResNetV2, StandardizedConv, pad_same
from pretrain.model.init import initialize
from pretrain.model.variants import feature_side, resolve

PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("name", "side", "grid", "millions", "rounding"),
    [
        ("hybrid_r50_b16", 384, 24, 98.951, 1e-3),
        # As timm counts the published weights; arXiv 2106.10270, table 2: 6.4, 36.6 and 330.0.
        ("hybrid_r_ti16", 384, 12, 6.36, 0.005),
        ("hybrid_r26_s32", 384, 12, 36.47, 0.005),
        ("hybrid_r50_l32", 384, 12, 329.09, 0.005),
    ],
)
def test_parameter_counts_are_the_published_ones(name, side, grid, millions, rounding):
    with torch.device("meta"):
        model = Classifier(
            ModelConfig(name=name, head="linear"), tile_size=side, max_tiles=1, num_classes=1000, **PIXELS
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=rounding)
    assert model.geometry.grid == (grid, grid)


def test_every_parameter_begins_and_learns_and_flops_are_counted():
    sizes = {"embed_dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    backbone = BackboneConfig(depths=[2, 2, 2, 2], stem=8, groups=8)
    config = ModelConfig(name="hybrid_r26_s32", backbone=backbone, **sizes)
    with torch.device("meta"):
        model = Classifier(config, tile_size=64, max_tiles=1, num_classes=3, **PIXELS)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize(model, seed=0)
    assert all(p.isfinite().all() for p in model.parameters())
    units = model.encoder.patch_embed.backbone.stages
    assert not units[0][0].norm3.weight.any()

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(images)
    assert counter.get_total_flops() == 2 * forward_flops(config, tile_size=64, num_classes=3)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_weights_are_standardised_in_each_output_channel():
    conv = StandardizedConv(3, 4, 3)
    x = torch.randn(1, 3, 8, 8)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(7).add_(3)
    torch.testing.assert_close(conv(x), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("side", "kernel_size", "stride", "expected"),
    [(8, 7, 2, 13), (8, 3, 2, 9), (7, 3, 2, 9), (8, 3, 1, 10), (8, 1, 2, 8)],
)
def test_same_padding_is_tensorflows(side, kernel_size, stride, expected):
    padded = pad_same(torch.ones(1, 1, side, side), kernel_size, stride)
    assert padded.shape[-2:] == (expected, expected)
    added = expected - side
    assert padded[0, 0, side // 2].tolist() == (
        [0.0] * (added // 2) + [1.0] * side + [0.0] * (added - added // 2)
    )


@pytest.mark.parametrize("side", [(70, 90), (64, 33)])
def test_any_resolution_has_features(small_config, side):
    backbone = BackboneConfig(depths=[1, 1], stem=8, widths=[16, 24], groups=4)
    config = small_config(name="hybrid_r50_b16", patch_size=1, backbone=backbone)
    model = Classifier(config, tile_size=side, max_tiles=1, num_classes=3, **PIXELS)
    features = model.encoder.patch_embed.backbone(torch.randn(1, 3, *side))
    assert features.shape[1:] == (24, *model.geometry.grid)
    assert model(torch.randn(2, 3, *side)).shape == (2, 3)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("unit", ["bottleneck", "preactivation"])
@pytest.mark.parametrize("output_stride", [32, 8])
def test_features_are_where_the_plan_says_and_every_parameter_learns(unit, padding, output_stride):
    backbone = BackboneConfig(
        depths=[1, 2, 1],
        stem=8,
        widths=[16, 24, 40],
        groups=4,
        unit=unit,
        padding=padding,
        output_stride=output_stride,
    )
    model = ResNetV2(backbone)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = model(torch.randn(2, 3, 45, 64))
    assert features.shape == (2, 40, feature_side(backbone, 45), feature_side(backbone, 64))
    features.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_googles_standardisation_adds_epsilon_to_the_deviation():
    conv = StandardizedConv(3, 4, 3, standardize="std")
    weight = conv.standardized()
    std = conv.weight.std((1, 2, 3), correction=0)
    torch.testing.assert_close(weight.std((1, 2, 3), correction=0), std / (std + 1e-5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unit": "basic"}, r"model\.backbone\.unit=basic: it must be one of bottleneck, preactivation"),
        ({"widths": [16]}, "2 depths and 1 widths"),
        ({"groups": 7}, "norms of 8 channels, which are not 7 equal groups"),
    ],
)
def test_wrong_backbones_are_refused(small_config, changed, message):
    backbone = BackboneConfig(**({"depths": [1, 1], "stem": 8, "widths": [16, 24], "groups": 4} | changed))
    with pytest.raises(UsageError, match=message):
        resolve(small_config(name="hybrid_r50_b16", backbone=backbone))
