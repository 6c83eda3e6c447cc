"""Google's vision_transformer (flax), plain and behind its ResNet, as its published files name arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema import BackboneConfig, ModelConfig
from pretrain.model.classifier import Classifier
from pretrain.model.heads import MlpHead
from pretrain.model.hybrid import ResNetV2
from pretrain.model.variants import resolve

from .entries import Entry, Weights, convolution, give, load, same, tensor, transposed, viewed
from .names import backbone_of, blocks_of, classifier, classifier_only, fitted, refuse, square, units_of

NORM_EPS = 1e-6
POSITIONS = "Transformer/posembed_input/pos_embedding"
# Before the names of the model's arrays: in a file of the optimiser's state, of big_vision, of flax.
PREFIXES = ("opt/target/", "params/img/", "params/")
# Numbers of modules in files that today's flax writes -> in the published files.
TODAYS_NUMBERS = {
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
    "LayerNorm_1/": "LayerNorm_2/",
    "MlpBlock_0/": "MlpBlock_3/",
}


def load_peer(config: dict[str, Any], weights: Weights, resize: str | None) -> Classifier:
    """As `load_peer` of the package; config: a model config of vision_transformer, and `image_size`."""
    weights = _published(weights)
    with torch.device("meta"):
        model = _build(config, weights)
    weights = fitted(weights, POSITIONS, [], model.geometry.grid, model.geometry.prefix, resize or "bilinear")
    load(model, list(_entries(model)), weights)
    return model.eval()


def to_peer(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As `to_peer` of the package; the names are those of the published files."""
    model = classifier_only("google", model)
    fields, arch = model.config, resolve(model.config)
    refuse(
        "google",
        {
            f"model.pool={fields.pool}": fields.pool not in ("cls", "mean"),
            "a class token beside the mean": fields.pool == "mean" and arch.class_token,
            f"model.activation={fields.activation}, only gelu_tanh": fields.activation != "gelu_tanh",
            f"model.norm_eps={fields.norm_eps:g}, only 1e-06": fields.norm_eps != NORM_EPS,
            "projections of attention without a bias": not arch.qkv_bias,
            "registers": fields.registers > 0,
            "mask tokens": model.encoder.mask_token is not None,
            "a pooler": model.pooler is not None,
            "a norm before the first block": fields.pre_norm,
            "a norm behind the pool": fields.final_norm != "tokens",
            "query-key norms": arch.qk_norm,
            "LayerScale": fields.layer_scale is not None,
            "parallel branches": blocks_of(model.encoder)[0].norm2 is None,
            f"model.head_activation={fields.head_activation}": (
                fields.head == "mlp" and fields.head_activation != "tanh"
            ),
            "a backbone that is not Google's: its std + 1e-5, 32 groups, epsilon 1e-6 and doubling widths": (
                arch.backbone is not None and arch.backbone != _backbone(_resnet(arch.backbone))
            ),
        },
    )
    config: dict[str, Any] = {
        "num_classes": model.num_classes,
        "patches": [arch.patch_size] * 2,
        "hidden_size": arch.embed_dim,
        "transformer": {
            "mlp_dim": arch.mlp_dim,
            "num_heads": arch.num_heads,
            "num_layers": arch.num_layers,
            "attention_dropout_rate": fields.attention_dropout,
            "dropout_rate": fields.dropout,
        },
        "classifier": "token" if fields.pool == "cls" else "gap",
        "representation_size": model.head.fc1.out_features if isinstance(model.head, MlpHead) else None,
        "image_size": model.tile_size,
    }
    if arch.backbone is not None:
        config["resnet"] = _resnet(arch.backbone)
    return config, give(model, list(_entries(model)))


def infer_config(weights: Weights) -> dict[str, Any]:
    """The model config of a published file, from the shapes of its arrays.

    Images are taken to be square, and a class token to be what the head sees where there is one.
    ValueError if one of the arrays needed for this is missing.
    """
    weights = _published(weights)
    first = "Transformer/encoderblock_0/"
    attention = f"{first}MultiHeadDotProductAttention_1/query/kernel"
    needed = ("embedding/kernel", attention, f"{first}MlpBlock_3/Dense_0/kernel", POSITIONS)
    for name in needed:
        if name not in weights:
            raise ValueError(f"the weights lack '{name}': not a Vision Transformer of Google's")
    kernel, query, dense, _ = (tensor(weights[name]) for name in needed)
    blocks = {name.split("/")[1] for name in weights if name.startswith("Transformer/encoderblock_")}
    config: dict[str, Any] = {
        "num_classes": len(weights["head/bias"]) if "head/bias" in weights else None,
        "patches": list(kernel.shape[:2]),
        "hidden_size": kernel.shape[-1],
        "transformer": {
            "mlp_dim": dense.shape[1],
            "num_heads": query.shape[1],
            "num_layers": len(blocks),
        },
        "classifier": "token" if "cls" in weights else "gap",
        "representation_size": len(weights["pre_logits/bias"]) if "pre_logits/bias" in weights else None,
    }
    if "conv_root/kernel" in weights:
        units = [re.match(r"block(\d+)/unit(\d+)/", name) for name in weights]
        found = {(int(unit[1]), int(unit[2])) for unit in units if unit}
        stages = sorted({stage for stage, _ in found})
        depths = [sum(stage == other for other, _ in found) for stage in stages]
        width = tensor(weights["conv_root/kernel"]).shape[-1]
        config["resnet"] = {"num_layers": depths, "width_factor": width / 64}
    return config


def _published(weights: Weights) -> dict[str, Any]:
    """The weights under the names of the published files; scales and biases of GroupNorms with one axis."""
    found = {}
    prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in weights), "")
    for name, value in weights.items():
        name = name.removeprefix(prefix)
        if re.search(r"gn\w+/(scale|bias)$", name):
            value = tensor(value).flatten()
        found[name] = value
    if "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel" not in found:
        return found
    for saved, published in TODAYS_NUMBERS.items():
        found = {name.replace(saved, published): value for name, value in found.items()}
    return found


def _build(config: dict[str, Any], weights: Weights) -> Classifier:
    transformer, pool = config["transformer"], config.get("classifier", "token")
    if pool not in ("token", "gap"):
        raise ValueError(f"classifier={pool!r}: choose token, gap")
    if not transformer.get("add_position_embedding", True):
        raise ValueError("add_position_embedding=False: models without positions are not supported")
    patches = config["patches"]
    patch = square(patches["size"] if isinstance(patches, dict) else patches, "patches")
    resnet = config.get("resnet")
    representation = config.get("representation_size")
    fields = ModelConfig(
        name="hybrid_r50_b16" if resnet else "vit_b16",
        head="linear" if representation is None else "mlp",
        head_hidden=representation,
        head_bias=config.get("head_bias_init", 0.0),
        pool="cls" if pool == "token" else "mean",
        patch_size=patch,
        embed_dim=config["hidden_size"],
        num_layers=transformer["num_layers"],
        num_heads=transformer["num_heads"],
        mlp_dim=transformer["mlp_dim"],
        backbone=_backbone(resnet) if resnet else None,
        activation="gelu_tanh",
        norm_eps=NORM_EPS,
        dropout=transformer.get("dropout_rate", 0.0),
        attention_dropout=transformer.get("attention_dropout_rate", 0.0),
    )
    size = config.get("image_size") or _image_size(weights, fields)
    return classifier(fields, size, config.get("num_classes") or 0, _channels(weights, bool(resnet)), weights)


def _image_size(weights: Weights, fields: ModelConfig) -> int:
    """The side of the square images for which the file has positions."""
    if POSITIONS not in weights:
        raise ValueError(f"the weights lack {POSITIONS!r}, which this configuration needs")
    side = isqrt(tensor(weights[POSITIONS]).shape[1] - (fields.pool == "cls"))
    return side * resolve(fields).stride


def _channels(weights: Weights, hybrid: bool) -> int:
    name = "conv_root/kernel" if hybrid else "embedding/kernel"
    if name not in weights:
        raise ValueError(f"the weights lack '{name}', which this configuration needs")
    return tensor(weights[name]).shape[-2]


def _backbone(resnet: dict[str, Any]) -> BackboneConfig:
    return BackboneConfig(
        depths=list(resnet["num_layers"]),
        stem=int(64 * resnet.get("width_factor", 1)),
        standardize="std",
        norm_eps=NORM_EPS,
    )


def _resnet(backbone: BackboneConfig) -> dict[str, Any]:
    return {"num_layers": list(backbone.depths), "width_factor": backbone.stem / 64}


def _entries(model: Classifier) -> Iterator[Entry]:
    if model.encoder.cls_token_embedding is not None:
        yield viewed("encoder.cls_token_embedding.weight", "cls", 2)
    yield viewed("encoder.token_pos_embedding.local", POSITIONS, 1)
    projection, backbone = "encoder.patch_embed", backbone_of(model)
    if backbone is not None:
        yield from _resnet_entries(backbone)
        projection += ".projection"
    yield convolution(f"{projection}.weight", "embedding/kernel")
    yield same(f"{projection}.bias", "embedding/bias")
    for index, block in enumerate(blocks_of(model.encoder)):
        ours, theirs = f"encoder.layers.{index}.", f"Transformer/encoderblock_{index}/"
        yield from _norm(f"{ours}norm1", f"{theirs}LayerNorm_0")
        yield from _attention(
            f"{ours}attn.", f"{theirs}MultiHeadDotProductAttention_1/", block.attn.num_heads
        )
        yield from _norm(f"{ours}norm2", f"{theirs}LayerNorm_2")
        for dense in (0, 1):
            yield from _dense(f"{ours}mlp.fc{dense + 1}", f"{theirs}MlpBlock_3/Dense_{dense}")
    yield from _norm("encoder.ln_post", "Transformer/encoder_norm")
    if model.config.head == "mlp":
        yield from _dense("head.fc1", "pre_logits")
    if model.num_classes:
        yield from _dense("head.fc2" if model.config.head == "mlp" else "head", "head")


def _norm(ours: str, theirs: str) -> Iterator[Entry]:
    yield same(f"{ours}.weight", f"{theirs}/scale")
    yield same(f"{ours}.bias", f"{theirs}/bias")


def _dense(ours: str, theirs: str) -> Iterator[Entry]:
    yield transposed(f"{ours}.weight", f"{theirs}/kernel")
    yield same(f"{ours}.bias", f"{theirs}/bias")


def _attention(ours: str, theirs: str, heads: int) -> Iterator[Entry]:
    """Kernels (D, heads, D / heads) of query, key and value, and (heads, D / heads, D) of the projection."""
    parts = ("query", "key", "value")
    yield Entry(
        f"{ours}qkv.weight",
        tuple(f"{theirs}{part}/kernel" for part in parts),
        lambda x: [part.T.unflatten(1, (heads, -1)) for part in x.chunk(3)],
        lambda *x: torch.cat([part.flatten(1).T for part in x]),
    )
    yield Entry(
        f"{ours}qkv.bias",
        tuple(f"{theirs}{part}/bias" for part in parts),
        lambda x: [part.unflatten(0, (heads, -1)) for part in x.chunk(3)],
        lambda *x: torch.cat([part.flatten() for part in x]),
    )
    yield Entry(
        f"{ours}proj.weight",
        (f"{theirs}out/kernel",),
        lambda x: (x.T.unflatten(0, (heads, -1)),),
        lambda x: x.flatten(0, 1).T,
    )
    yield same(f"{ours}proj.bias", f"{theirs}out/bias")


def _resnet_entries(backbone: ResNetV2) -> Iterator[Entry]:
    ours = "encoder.patch_embed.backbone."
    yield convolution(f"{ours}conv_root.weight", "conv_root/kernel")
    yield from _norm(f"{ours}norm_root", "gn_root")
    for stage, index, unit in units_of(backbone):
        our, their = f"{ours}stages.{stage}.{index}.", f"block{stage + 1}/unit{index + 1}/"
        if isinstance(unit.shortcut, nn.Sequential):
            yield convolution(f"{our}shortcut.0.weight", f"{their}conv_proj/kernel")
            yield from _norm(f"{our}shortcut.1", f"{their}gn_proj")
        for number in (1, 2, 3):
            yield convolution(f"{our}conv{number}.weight", f"{their}conv{number}/kernel")
            yield from _norm(f"{our}norm{number}", f"{their}gn{number}")
