"""Google's vision_transformer: the arrays of its published files, kernels (in, out) and (h, w, in, out)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layers import Weights, attend, gelu_tanh, normalized, patches
from .maps import resize_table
from .resnet import Conv, Style, Unit, features

EPS = 1e-6
POSITIONS = "Transformer/posembed_input/pos_embedding"
ATTENTION = "MultiHeadDotProductAttention_1"


@dataclass(frozen=True)
class Output:
    logits: Tensor
    representation: Tensor
    tokens: Tensor
    positions: Tensor


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch, transformer = config["hidden_size"], config["patches"][0], config["transformer"]
    resnet, side = config.get("resnet"), config["image_size"] // patch
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    if resnet:
        side = config["image_size"] // (2 ** (1 + len(resnet["num_layers"]))) // patch
        channels = int(64 * resnet["width_factor"])
        found |= _conv_shapes("conv_root", "gn_root", 7, 3, channels)
        for stage, depth in enumerate(resnet["num_layers"], 1):
            middle = int(64 * resnet["width_factor"]) * 2 ** (stage - 1)
            for index in range(1, depth + 1):
                unit = f"block{stage}/unit{index}/"
                if index == 1:
                    found |= _conv_shapes(f"{unit}conv_proj", f"{unit}gn_proj", 1, channels, 4 * middle)
                found |= _conv_shapes(f"{unit}conv1", f"{unit}gn1", 1, channels, middle)
                found |= _conv_shapes(f"{unit}conv2", f"{unit}gn2", 3, middle, middle)
                found |= _conv_shapes(f"{unit}conv3", f"{unit}gn3", 1, middle, 4 * middle)
                channels = 4 * middle
    token = config.get("classifier", "token") == "token"
    if token:
        found["cls"] = (1, 1, width)
    found |= {"embedding/kernel": (patch, patch, channels, width), "embedding/bias": (width,)}
    found[POSITIONS] = (1, side * side + token, width)
    heads, inner = transformer["num_heads"], transformer["mlp_dim"]
    norms = ["Transformer/encoder_norm"]
    for layer in (f"Transformer/encoderblock_{index}/" for index in range(transformer["num_layers"])):
        norms += [f"{layer}LayerNorm_0", f"{layer}LayerNorm_2"]
        for name in ("query", "key", "value"):
            found[f"{layer}{ATTENTION}/{name}/kernel"] = (width, heads, width // heads)
            found[f"{layer}{ATTENTION}/{name}/bias"] = (heads, width // heads)
        found[f"{layer}{ATTENTION}/out/kernel"] = (heads, width // heads, width)
        found[f"{layer}{ATTENTION}/out/bias"] = (width,)
        found |= _dense_shapes(f"{layer}MlpBlock_3/Dense_0", width, inner)
        found |= _dense_shapes(f"{layer}MlpBlock_3/Dense_1", inner, width)
    for name in norms:
        found |= {f"{name}/scale": (width,), f"{name}/bias": (width,)}
    if config.get("representation_size"):
        found |= _dense_shapes("pre_logits", width, config["representation_size"])
    return found | _dense_shapes("head", config.get("representation_size") or width, config["num_classes"])


def _dense_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def _conv_shapes(conv: str, norm: str, side: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{conv}/kernel": (side, side, inputs, outputs),
        f"{norm}/scale": (outputs,),
        f"{norm}/bias": (outputs,),
    }


def forward(config: Mapping[str, Any], w: Weights, images: Tensor) -> Output:
    """images: (B, H, W, C)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return normalized(x, w[f"{name}/scale"], w[f"{name}/bias"], EPS)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}/kernel"].flatten(0, -2) + w[f"{name}/bias"]

    def joined(x: Tensor, name: str) -> Tensor:
        """The heads of a projection side by side."""
        return x @ w[f"{name}/kernel"].flatten(1) + w[f"{name}/bias"].flatten()

    transformer, token = config["transformer"], config.get("classifier", "token") == "token"
    x = images.permute(0, 3, 1, 2)
    if config.get("resnet"):
        root, stages = backbone(config["resnet"]["num_layers"], w)
        x = features(x, root, stages, Style(eps=EPS, by_deviation=True))
    grid = [side // config["patches"][0] for side in x.shape[2:]]
    x = patches(x, w["embedding/kernel"].permute(3, 2, 0, 1), w["embedding/bias"])
    if token:
        x = torch.cat([w["cls"].expand(len(x), -1, -1), x], 1)
    old = round((w[POSITIONS].shape[1] - token) ** 0.5)
    positions = resize_table(w[POSITIONS], (old, old), grid, int(token), "bilinear")
    x = x + positions
    for index in range(transformer["num_layers"]):
        layer = f"Transformer/encoderblock_{index}/"
        y = norm(x, f"{layer}LayerNorm_0")
        q, k, v = (joined(y, f"{layer}{ATTENTION}/{name}") for name in ("query", "key", "value"))
        x = x + dense(attend(q, k, v, transformer["num_heads"])[0], f"{layer}{ATTENTION}/out")
        y = dense(norm(x, f"{layer}LayerNorm_2"), f"{layer}MlpBlock_3/Dense_0")
        x = x + dense(gelu_tanh(y), f"{layer}MlpBlock_3/Dense_1")
    tokens = norm(x, "Transformer/encoder_norm")
    representation = tokens[:, 0] if token else tokens.mean(1)
    if config.get("representation_size"):
        representation = torch.tanh(dense(representation, "pre_logits"))
    return Output(dense(representation, "head"), representation, tokens, positions)


def backbone(depths: list[int], w: Weights) -> tuple[Conv, list[list[Unit]]]:
    def conv(conv: str, norm: str) -> Conv:
        return Conv(w[f"{conv}/kernel"].permute(3, 2, 0, 1), w[f"{norm}/scale"], w[f"{norm}/bias"])

    def unit(stage: int, index: int) -> Unit:
        name = f"block{stage}/unit{index}/"
        first, second, third = (conv(f"{name}conv{n}", f"{name}gn{n}") for n in (1, 2, 3))
        return Unit(
            (first, second, third), conv(f"{name}conv_proj", f"{name}gn_proj") if index == 1 else None
        )

    stages = [[unit(stage, index) for index in range(1, n + 1)] for stage, n in enumerate(depths, 1)]
    return conv("conv_root", "gn_root"), stages
