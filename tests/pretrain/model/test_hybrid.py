"""ResNet and Transformer together: the numbers of Google's code."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import BackboneConfig, ModelConfig
from pretrain.model import Block, Classifier, TokenPositionalEmbedding, VisionTransformer
from pretrain.model.flops import forward_flops
from pretrain.model.hybrid import HybridEmbedding, ResNetV2, StandardizedConv, pad_same
from pretrain.model.init import initialize

PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def kernel(array: np.ndarray) -> torch.Tensor:
    """flax's (h, w, in, out) as (out, in, h, w)."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy())


def encoder_state(npz: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """Google's arrays under the names of VisionTransformer with a HybridEmbedding."""
    tensors = {name: torch.from_numpy(value) for name, value in npz.items()}
    width = len(tensors["embedding/bias"])
    state = {
        "cls_token_embedding.weight": tensors["cls"].flatten(),
        "token_pos_embedding.local": tensors["Transformer/posembed_input/pos_embedding"][0],
        "patch_embed.projection.weight": kernel(npz["embedding/kernel"]),
        "patch_embed.projection.bias": tensors["embedding/bias"],
        "patch_embed.backbone.conv_root.weight": kernel(npz["conv_root/kernel"]),
    }
    norms = {
        "Transformer/encoder_norm": "ln_post",
        "gn_root": "patch_embed.backbone.norm_root",
        "block1/unit1/gn_proj": "patch_embed.backbone.stages.0.0.shortcut.1",
    }
    unit = "patch_embed.backbone.stages.0.0."
    state[unit + "shortcut.0.weight"] = kernel(npz["block1/unit1/conv_proj/kernel"])
    for i in (1, 2, 3):
        state[f"{unit}conv{i}.weight"] = kernel(npz[f"block1/unit1/conv{i}/kernel"])
        norms[f"block1/unit1/gn{i}"] = f"{unit}norm{i}"
    for layer in range(layers):
        theirs, ours = f"Transformer/encoderblock_{layer}/", f"layers.{layer}."
        attention = theirs + "MultiHeadDotProductAttention_1/"
        norms |= {theirs + "LayerNorm_0": ours + "norm1", theirs + "LayerNorm_2": ours + "norm2"}
        parts = [tensors[f"{attention}{x}/kernel"].flatten(1).T for x in ("query", "key", "value")]
        state[ours + "attn.qkv.weight"] = torch.cat(parts)
        parts = [tensors[f"{attention}{x}/bias"].flatten() for x in ("query", "key", "value")]
        state[ours + "attn.qkv.bias"] = torch.cat(parts)
        state[ours + "attn.proj.weight"] = tensors[attention + "out/kernel"].flatten(0, 1).T
        state[ours + "attn.proj.bias"] = tensors[attention + "out/bias"]
        for i in (0, 1):
            dense = f"{theirs}MlpBlock_3/Dense_{i}/"
            state[f"{ours}mlp.fc{i + 1}.weight"] = tensors[dense + "kernel"].T
            state[f"{ours}mlp.fc{i + 1}.bias"] = tensors[dense + "bias"]
    for theirs, ours in norms.items():
        state[ours + ".weight"] = tensors[theirs + "/scale"].flatten()
        state[ours + ".bias"] = tensors[theirs + "/bias"].flatten()
    assert state["cls_token_embedding.weight"].shape == (width,)
    return state


def test_tokens_equal_googles(golden):
    data = golden("google_hybrid_npz")
    config = json.loads(str(data["config_json"]))
    transformer, width = config["transformer"], config["hidden_size"]
    layers = transformer["num_layers"]
    model = VisionTransformer(
        patch_size=4,
        tile_size=config["image_size"],
        num_layers=layers,
        embed_dim=width,
        layer=Block(width, transformer["num_heads"], transformer["mlp_dim"], activation="gelu_tanh"),
        token_pos_embedding=TokenPositionalEmbedding(width, config["image_size"], 4),
        pre_norm=False,
        norm_eps=1e-6,
        patch_embed=HybridEmbedding(ResNetV2(BackboneConfig(depths=[1], stem=32)), 1, width),
    )
    npz = {key.removeprefix("npz/"): v for key, v in data.items() if key.startswith("npz/")}
    model.load_state_dict(encoder_state(npz, layers))
    images = torch.from_numpy(data["inputs/images_nhwc"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        x, _ = model(images[:, None, None])
    tokens = x[:, 0, 0]
    expected = torch.from_numpy(data["outputs/encoder_tokens"])
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    logits = F.linear(
        tokens[:, 0], torch.from_numpy(npz["head/kernel"]).T, torch.from_numpy(npz["head/bias"])
    )
    torch.testing.assert_close(logits, torch.from_numpy(data["outputs/logits"]), atol=1e-4, rtol=1e-4)


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
