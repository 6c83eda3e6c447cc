"""transformers' ViT, ViT-Hybrid and their BiT backbone, with a classifier and a pooler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import resnet
from .layers import Weights, attend, dense, gelu, gelu_tanh, norm, patches, relu
from .maps import resize_table
from .resnet import Conv, Style, Unit

ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "relu": relu}
EMBEDDINGS = "vit.embeddings."
BIT = f"{EMBEDDINGS}patch_embeddings.backbone.bit."


@dataclass(frozen=True)
class Output:
    """hidden: what the first layer is given, then what each layer gives; features: of a hybrid."""

    logits: Tensor
    pooled: Tensor
    tokens: Tensor
    hidden: list[Tensor]
    attentions: list[Tensor]
    positions: Tensor
    features: Tensor | None = None
    stem: Tensor | None = None


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Under the names of the model with a classifier, pooler and mask token with it."""
    width, patch, side = (config[key] for key in ("hidden_size", "patch_size", "image_size"))
    bit = config.get("backbone_config")
    cells = config["backbone_featmap_shape"][-1] if bit else side
    channels = bit["hidden_sizes"][-1] if bit else 3
    found: dict[str, tuple[int, ...]] = {
        f"{EMBEDDINGS}cls_token": (1, 1, width),
        f"{EMBEDDINGS}mask_token": (1, 1, width),
        f"{EMBEDDINGS}position_embeddings": (1, (cells // patch) ** 2 + 1, width),
    }
    sizes: dict[str, tuple[int, ...]] = {
        f"{EMBEDDINGS}patch_embeddings.projection": (width, channels, patch, patch),
        "vit.pooler.dense": (width, width),
        "classifier": (config["num_labels"], width),
        "vit.layernorm": (width,),
    }
    for layer in (f"vit.encoder.layer.{index}." for index in range(config["num_hidden_layers"])):
        inner = config["intermediate_size"]
        sizes |= {f"{layer}layernorm_{place}": (width,) for place in ("before", "after")}
        for name in (*(f"attention.{x}" for x in ("query", "key", "value")), "output.dense"):
            sizes[f"{layer}attention.{name}"] = (width, width)
        sizes |= {f"{layer}intermediate.dense": (inner, width), f"{layer}output.dense": (width, inner)}
    for name, size in sizes.items():
        unbiased = name.rpartition(".")[2] in ("query", "key", "value") and not config.get("qkv_bias", True)
        found[f"{name}.weight"] = size
        if not unbiased:
            found[f"{name}.bias"] = size[:1]
    return found | (_bit_shapes(bit) if bit else {})


def _bit_shapes(bit: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    stages = zip(bit["depths"], bit["hidden_sizes"], strict=True)
    names = ("embedder.convolution", "embedder.norm", "encoder.stages.{}.layers.{}.")
    return resnet.shapes_as_named(BIT, *names, bit["embedding_size"], stages)


def forward(
    config: Mapping[str, Any],
    w: Weights,
    images: Tensor,
    masked: Tensor | None = None,
    mode: str = "bicubic_centers",
) -> Output:
    """masked: bool (B, patches), where the mask token stands. mode: of `maps.resize`, for another grid."""
    patch, heads, eps = (
        config["patch_size"],
        config["num_attention_heads"],
        config.get("layer_norm_eps", 1e-12),
    )
    activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
    features = stem = None
    if "backbone_config" in config:
        bit = config["backbone_config"]
        style = Style(groups=bit["num_groups"])
        root, stages = _backbone(bit, w)
        stem = resnet.stem(images, root, style)
        features = resnet.features(images, root, stages, style)
    seen = images if features is None else features
    projection = f"{EMBEDDINGS}patch_embeddings.projection"
    x = patches(seen, w[f"{projection}.weight"], w[f"{projection}.bias"])
    if masked is not None:
        x = torch.where(masked[..., None], w[f"{EMBEDDINGS}mask_token"], x)
    table = w[f"{EMBEDDINGS}position_embeddings"]
    old = round((table.shape[1] - 1) ** 0.5)
    table = resize_table(table, (old, old), [side // patch for side in seen.shape[2:]], 1, mode)
    x = torch.cat([w[f"{EMBEDDINGS}cls_token"].expand(len(x), -1, -1), x], 1) + table
    hidden, attentions = [x], []
    for index in range(config["num_hidden_layers"]):
        layer = f"vit.encoder.layer.{index}."
        y = norm(x, w, f"{layer}layernorm_before", eps)
        q, k, v = (dense(y, w, f"{layer}attention.attention.{name}") for name in ("query", "key", "value"))
        y, weights = attend(q, k, v, heads)
        x = x + dense(y, w, f"{layer}attention.output.dense")
        y = activation(dense(norm(x, w, f"{layer}layernorm_after", eps), w, f"{layer}intermediate.dense"))
        x = x + dense(y, w, f"{layer}output.dense")
        hidden.append(x)
        attentions.append(weights)
    tokens = norm(x, w, "vit.layernorm", eps)
    pooled = torch.tanh(dense(tokens[:, 0], w, "vit.pooler.dense"))
    logits = dense(tokens[:, 0], w, "classifier")
    return Output(logits, pooled, tokens, hidden, attentions, table, features, stem)


def _backbone(bit: Mapping[str, Any], w: Weights) -> tuple[Conv, list[list[Unit]]]:
    def conv(conv: str, norm: str) -> Conv:
        return Conv(w[f"{BIT}{conv}.weight"], w[f"{BIT}{norm}.weight"], w[f"{BIT}{norm}.bias"])

    def unit(stage: int, index: int) -> Unit:
        name = f"encoder.stages.{stage}.layers.{index}."
        first, second, third = (conv(f"{name}conv{n}", f"{name}norm{n}") for n in (1, 2, 3))
        shortcut = conv(f"{name}downsample.conv", f"{name}downsample.norm") if index == 0 else None
        return Unit((first, second, third), shortcut)

    stages = [[unit(stage, index) for index in range(depth)] for stage, depth in enumerate(bit["depths"])]
    return conv("embedder.convolution", "embedder.norm"), stages
