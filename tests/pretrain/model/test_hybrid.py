"""ResNet and Transformer together: the numbers of Google's code."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import ModelConfig
from pretrain.model import Classifier
from pretrain.model.flops import forward_flops
from pretrain.model.hybrid import StandardizedConv, pad_same
from pretrain.model.init import initialize

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
    config = ModelConfig(name="hybrid_r26_s32", **sizes)
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
