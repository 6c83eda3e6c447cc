"""transformers' ViT and ViT-Hybrid, with or without a classifier, a pooler and a mask token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema import BackboneConfig, ModelConfig
from pretrain.model.classifier import Classifier
from pretrain.model.variants import multiple_of_8, resolve

from .entries import Entry, Weights, affine, give, load, same, stacked, viewed
from .names import (
    activation_name,
    backbone_of,
    fitted,
    image_size,
    our_activation,
    refuse,
    refuse_classifier,
    square,
)

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_act": "tanh",
}
BACKBONE_DEFAULTS = {
    "model_type": "bit",
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "num_groups": 32,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "width_factor": 1,
    "out_features": None,
    "out_indices": None,
}
# The backbone of a hybrid that names none.
USUAL_BACKBONE = {
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "out_features": ["stage3"],
    "embedding_dynamic_padding": True,
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "selu": "selu",
    "silu": "silu",
    "swish": "silu",
}
# Prefixes of the parameters of a classifier's body, and of a backbone.
BODY = "vit."
BIT = "embeddings.patch_embeddings.backbone.bit."
HEAD_ONLY = "classifier."


@dataclass(frozen=True)
class Peer:
    """One of the two architectures."""

    name: str
    model_type: str
    architecture: str
    hybrid: bool

    def load_peer(self, given: dict[str, Any], weights: Weights, resize: str | None) -> Classifier:
        config = DEFAULTS | {"patch_size": 1 if self.hybrid else 16} | given
        if config["pooler_act"] != "tanh":
            raise ValueError(f"pooler_act={config['pooler_act']!r}: only tanh is supported")
        weights, prefix = _without_prefix(weights)
        backbone = _backbone(config) if self.hybrid else None
        with torch.device("meta"):
            model = _build(config, weights, backbone)
        table = "embeddings.position_embeddings"
        grids = _made_for(config) if self.hybrid else []
        weights = fitted(weights, table, grids, model.geometry.grid, 1, resize or "bicubic_centers")
        if backbone is not None:
            weights = _used(weights, len(backbone.depths))

        def shown(name: str) -> str:
            return name if name.startswith(HEAD_ONLY) else prefix + name

        load(model, list(_entries(model)), weights, shown)
        return model.eval()

    def to_peer(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        refuse_classifier(self.name, model)
        fields = model.config
        refuse(
            self.name,
            {
                "a backbone" if backbone_of(model) else "models without a backbone": (
                    (backbone_of(model) is not None) != self.hybrid
                ),
                f"model.pool={fields.pool}": fields.pool != "cls",
                "the two-layer head": fields.head != "linear",
                "registers": fields.registers > 0,
                "a norm before the first block": fields.pre_norm,
                "a norm behind the pool": fields.final_norm != "tokens",
                "query-key norms": bool(fields.qk_norm),
                "LayerScale": fields.layer_scale is not None,
                "parallel branches": model.blocks[0].norm2 is None,
            },
        )
        weights = give(model, list(_entries(model)))
        config = self._config(model)
        if self.hybrid:
            weights |= _unused(config["backbone_config"], model)
        if model.num_classes:
            weights = {name if name.startswith(HEAD_ONLY) else BODY + name: v for name, v in weights.items()}
        return config, weights

    def _config(self, model: Classifier) -> dict[str, Any]:
        arch = resolve(model.config)
        config = {
            "model_type": self.model_type,
            "architectures": [
                self.architecture + ("ForImageClassification" if model.num_classes else "Model")
            ],
            "hidden_size": arch.embed_dim,
            "num_hidden_layers": arch.num_layers,
            "num_attention_heads": arch.num_heads,
            "intermediate_size": arch.mlp_dim,
            "hidden_act": activation_name(model.config.activation, ACTIVATIONS, self.name),
            "hidden_dropout_prob": model.config.dropout,
            "attention_probs_dropout_prob": model.config.attention_dropout,
            "layer_norm_eps": model.config.norm_eps,
            "image_size": model.tile_size if isinstance(model.tile_size, int) else list(model.tile_size),
            "patch_size": arch.patch_size,
            "num_channels": model.encoder.in_channels,
            "qkv_bias": arch.qkv_bias,
            "num_labels": model.num_classes,
        }
        if self.hybrid:
            bit = arch.backbone
            config["backbone_config"] = _bit_config(bit, model.encoder.in_channels)
            channels = bit.widths[-1] if bit.widths else bit.stem
            cells = [side * arch.patch_size for side in model.geometry.grid]
            config["backbone_featmap_shape"] = [1, channels, *cells]
        return config


PLAIN = Peer("hf_vit", "vit", "ViT", hybrid=False)
HYBRID = Peer("hf_vit_hybrid", "vit-hybrid", "ViTHybrid", hybrid=True)


def _without_prefix(weights: Weights) -> tuple[dict[str, Any], str]:
    """The weights by the names of the model without a head, and the prefix that they had."""
    bare: dict[str, Any] = {}
    for name, value in weights.items():
        short = name.removeprefix(BODY)
        if short in bare:
            raise ValueError(f"the weights hold both {short!r} and {BODY + short!r}")
        bare[short] = value
    return bare, BODY if any(name.startswith(BODY) for name in weights) else ""


def _build(config: dict[str, Any], weights: Weights, backbone: BackboneConfig | None) -> Classifier:
    channels = config["num_channels"]
    classes = 0
    if "classifier.weight" in weights:
        known = config.get("num_labels") or len(config.get("id2label") or ())
        classes = known or len(weights["classifier.weight"])
    fields = ModelConfig(
        name="hybrid_r50_b16" if backbone else "vit_b16",
        head="linear",
        patch_size=square(config["patch_size"], "patch_size"),
        embed_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        backbone=backbone,
        activation=our_activation(config["hidden_act"], ACTIVATIONS, "transformers"),
        qkv_bias=config["qkv_bias"],
        norm_eps=config["layer_norm_eps"],
        dropout=config["hidden_dropout_prob"],
        attention_dropout=config["attention_probs_dropout_prob"],
    )
    return Classifier(
        fields,
        tile_size=image_size(config["image_size"]),
        max_tiles=1,
        num_classes=classes,
        mean=[0.5] * channels,
        std=[0.5] * channels,
        in_channels=channels,
        mask_token="embeddings.mask_token" in weights,
        pooler="pooler.dense.weight" in weights or "pooler.dense.bias" in weights,
    )


def _backbone(config: dict[str, Any]) -> BackboneConfig:
    """The stages of the backbone that the Transformer sees something of."""
    given = config.get("backbone_config")
    bit = BACKBONE_DEFAULTS | (USUAL_BACKBONE if given is None else dict(given))
    if config.get("backbone") or config.get("use_timm_backbone") or bit["model_type"] != "bit":
        raise ValueError("only backbone_config of BiT (model_type 'bit') is supported")
    if bit["layer_type"] not in ("bottleneck", "preactivation"):
        raise ValueError(f"layer_type={bit['layer_type']!r}: choose bottleneck, preactivation")
    padding = bit["global_padding"]
    if padding is not None and padding.lower() != "same":
        raise ValueError(f"global_padding={padding!r}: choose same, or None for symmetric padding")
    stages = min(len(bit["depths"]), len(bit["hidden_sizes"]))
    last = _last_stage(bit, stages)
    return BackboneConfig(
        depths=list(bit["depths"][:last]),
        widths=[multiple_of_8(width * bit["width_factor"]) for width in bit["hidden_sizes"][:last]],
        stem=bit["embedding_size"],
        groups=bit["num_groups"],
        unit=bit["layer_type"],
        activation=our_activation(bit["hidden_act"], ACTIVATIONS, "transformers"),
        padding="symmetric" if padding is None else "same",
        pool_padding=bit["embedding_dynamic_padding"],
        output_stride=bit["output_stride"],
    )


def _last_stage(bit: dict[str, Any], stages: int) -> int:
    """How many stages stand before the features: of several feature maps the last is used."""
    names = ["stem", *(f"stage{index}" for index in range(1, len(bit["depths"]) + 1))]
    chosen = bit["out_features"] or [names[index] for index in bit["out_indices"] or [len(names) - 1]]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"out_features has {unknown[0]!r}: choose {', '.join(names)}")
    last = max(names.index(name) for name in chosen)
    if last > stages:
        raise ValueError(f"out_features asks for stage {last}, but hidden_sizes has only {stages}")
    return last


def _made_for(config: dict[str, Any]) -> list[tuple[int, int]]:
    """The grid of a hybrid's position table, as its configuration tells it."""
    shape = config.get("backbone_featmap_shape")
    if not shape:
        return []
    patch = square(config["patch_size"], "patch_size")
    return [(shape[-2] // patch, shape[-1] // patch)]


def _entries(model: Classifier) -> Iterator[Entry]:
    """By the names of the model without a head."""
    yield viewed("encoder.cls_token_embedding.weight", "embeddings.cls_token", 2)
    yield viewed("encoder.token_pos_embedding.local", "embeddings.position_embeddings", 1)
    if model.encoder.mask_token is not None:
        yield viewed("encoder.mask_token", "embeddings.mask_token", 2)
    projection = "encoder.patch_embed"
    if backbone_of(model) is not None:
        yield from _bit_entries(backbone_of(model))
        projection += ".projection"
    yield from affine(projection, "embeddings.patch_embeddings.projection")
    for index, block in enumerate(model.blocks):
        ours, theirs = f"encoder.layers.{index}.", f"encoder.layer.{index}."
        yield from affine(f"{ours}norm1", f"{theirs}layernorm_before")
        for part in ("weight", "bias") if block.attn.qkv.bias is not None else ("weight",):
            names = (f"{theirs}attention.attention.{x}.{part}" for x in ("query", "key", "value"))
            yield stacked(f"{ours}attn.qkv.{part}", names)
        yield from affine(f"{ours}attn.proj", f"{theirs}attention.output.dense")
        yield from affine(f"{ours}norm2", f"{theirs}layernorm_after")
        yield from affine(f"{ours}mlp.fc1", f"{theirs}intermediate.dense")
        yield from affine(f"{ours}mlp.fc2", f"{theirs}output.dense")
    yield from affine("encoder.ln_post", "layernorm")
    if model.pooler is not None:
        yield from affine("pooler.dense", "pooler.dense")
    if model.num_classes:
        yield from affine("head", "classifier")


def _bit_entries(backbone: nn.Module) -> Iterator[Entry]:
    ours, theirs = "encoder.patch_embed.backbone.", BIT
    yield same(f"{ours}conv_root.weight", f"{theirs}embedder.convolution.weight")
    if backbone.norm_root is not None:
        yield from affine(f"{ours}norm_root", f"{theirs}embedder.norm")
    for stage, units in enumerate(backbone.stages):
        for index, unit in enumerate(units):
            our, their = f"{ours}stages.{stage}.{index}.", f"{theirs}encoder.stages.{stage}.layers.{index}."
            if isinstance(unit.shortcut, nn.Sequential):
                yield same(f"{our}shortcut.0.weight", f"{their}downsample.conv.weight")
            if isinstance(unit.shortcut, nn.Sequential) and len(unit.shortcut) == 2:
                yield from affine(f"{our}shortcut.1", f"{their}downsample.norm")
            for number in (1, 2, 3):
                yield same(f"{our}conv{number}.weight", f"{their}conv{number}.weight")
                yield from affine(f"{our}norm{number}", f"{their}norm{number}")


def _used(weights: Weights, stages: int) -> Weights:
    """Without the stages behind the features, and without the backbone's own last norm."""
    head = f"{BIT}encoder.stages."
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith(f"{BIT}norm.")
        and not (name.startswith(head) and int(name.removeprefix(head).partition(".")[0]) >= stages)
    }


def _unused(bit: dict[str, Any], model: Classifier) -> dict[str, Tensor]:
    """The norm that a backbone with preactivation has behind its features, where nothing sees it."""
    if bit["layer_type"] != "preactivation":
        return {}
    channels, like = bit["hidden_sizes"][-1], model.encoder.ln_post.weight
    return {f"{BIT}norm.weight": like.new_ones(channels), f"{BIT}norm.bias": like.new_zeros(channels)}


def _bit_config(bit: BackboneConfig, channels: int) -> dict[str, Any]:
    refuse(
        "hf_vit_hybrid",
        {
            "convolutions standardised by std + 1e-5, as Google's": bit.standardize != "var",
            "GroupNorms with another epsilon than 1e-5": bit.norm_eps != 1e-5,
            f"backbone widths {bit.widths}, which are no multiples of 8": any(w % 8 for w in bit.widths),
        },
    )
    return {
        "model_type": "bit",
        "num_channels": channels,
        "embedding_size": bit.stem,
        "hidden_sizes": list(bit.widths) or [bit.stem],
        "depths": list(bit.depths),
        "layer_type": bit.unit,
        "hidden_act": activation_name(bit.activation, ACTIVATIONS, "hf_vit_hybrid"),
        "global_padding": "same" if bit.padding == "same" else None,
        "num_groups": bit.groups,
        "embedding_dynamic_padding": bit.pool_padding,
        "output_stride": bit.output_stride,
        "out_features": [f"stage{len(bit.depths)}" if bit.depths else "stem"],
    }
