"""transformers' ViT and ViT-Hybrid, with or without a classifier, a pooler and a mask token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema import BackboneConfig, ModelConfig
from pretrain.model.classifier import Classifier
from pretrain.model.variants import resolve

from . import names
from .entries import Entry, Weights, affine, give, load, stacked, viewed
from .hf_backbone import bit_config, bit_entries, feature_grids, read_bit, unused_norm, without_unused
from .hf_names import BODY, HEAD_ONLY, as_in_files
from .hf_settings import ACTIVATIONS

DEFAULTS: dict[str, Any] = {
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


@dataclass(frozen=True)
class HfFormat:
    """One of the two formats: `name` for `load_peer`, the other names as in transformers' config.json.

    class_name: the classes of transformers begin with it.
    """

    name: str
    model_type: str
    class_name: str
    hybrid: bool

    def load_peer(self, given: dict[str, Any], weights: Weights, resize: str | None) -> Classifier:
        """As `load_peer` of the package; given: arguments of ViTConfig or ViTHybridConfig."""
        config = DEFAULTS | {"patch_size": 1 if self.hybrid else 16} | given
        if config["pooler_act"] != "tanh":
            raise ValueError(f"pooler_act={config['pooler_act']!r}: only tanh is supported")
        width, heads = config["hidden_size"], config["num_attention_heads"]
        if config.get("head_dim") and config["head_dim"] * heads != width:
            raise ValueError(
                f"head_dim={config['head_dim']}: only hidden_size / num_attention_heads is supported"
            )
        weights, given_names = as_in_files(weights)
        backbone = read_bit(config) if self.hybrid else None
        with torch.device("meta"):
            model = _build(config, weights, backbone)
        table = "embeddings.position_embeddings"
        grids = feature_grids(config) if self.hybrid else []
        weights = names.fitted(weights, table, grids, model.geometry.grid, 1, resize or "bicubic_centers")
        if backbone is not None:
            weights = without_unused(weights, len(backbone.depths))

        load(model, list(_entries(model)), weights, given_names)
        return model.eval()

    def to_peer(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As `to_peer` of the package; the names are those of transformers' class for this model."""
        model = names.classifier_only(self.name, model)
        fields, backbone = model.config, names.backbone_of(model)
        names.refuse(
            self.name,
            {
                "a backbone" if backbone else "models without a backbone": (
                    (backbone is not None) != self.hybrid
                ),
                f"model.pool={fields.pool}": fields.pool != "cls",
                "the two-layer head": fields.head != "linear",
                "registers": fields.registers > 0,
                "a norm before the first block": fields.pre_norm,
                "a norm behind the pool": fields.final_norm != "tokens",
                "query-key norms": bool(fields.qk_norm),
                "LayerScale": fields.layer_scale is not None,
                "parallel branches": names.blocks_of(model.encoder)[0].norm2 is None,
            },
        )
        weights = give(model, list(_entries(model)))
        config = self._config(model)
        if self.hybrid:
            weights |= unused_norm(config["backbone_config"], model)
        if model.num_classes:
            weights = {name if name.startswith(HEAD_ONLY) else BODY + name: v for name, v in weights.items()}
        return config, weights

    def _config(self, model: Classifier) -> dict[str, Any]:
        arch = resolve(model.config)
        config: dict[str, Any] = {
            "model_type": self.model_type,
            "architectures": [self.class_name + ("ForImageClassification" if model.num_classes else "Model")],
            "hidden_size": arch.embed_dim,
            "num_hidden_layers": arch.num_layers,
            "num_attention_heads": arch.num_heads,
            "intermediate_size": arch.mlp_dim,
            "hidden_act": names.activation_name(model.config.activation, ACTIVATIONS, self.name),
            "hidden_dropout_prob": model.config.dropout,
            "attention_probs_dropout_prob": model.config.attention_dropout,
            "layer_norm_eps": model.config.norm_eps,
            "image_size": model.tile_size if isinstance(model.tile_size, int) else list(model.tile_size),
            "patch_size": arch.patch_size,
            "num_channels": model.encoder.in_channels,
            "qkv_bias": arch.qkv_bias,
            "num_labels": model.num_classes,
        }
        if bit := arch.backbone:
            config["backbone_config"] = bit_config(bit, model.encoder.in_channels)
            channels = bit.widths[-1] if bit.widths else bit.stem
            cells = [side * arch.patch_size for side in model.geometry.grid]
            config["backbone_featmap_shape"] = [1, channels, *cells]
        return config


PLAIN = HfFormat("hf_vit", "vit", "ViT", hybrid=False)
HYBRID = HfFormat("hf_vit_hybrid", "vit-hybrid", "ViTHybrid", hybrid=True)


def _build(config: dict[str, Any], weights: Weights, backbone: BackboneConfig | None) -> Classifier:
    classes = 0
    if "classifier.weight" in weights:
        known = config.get("num_labels") or len(config.get("id2label") or ())
        classes = known or len(weights["classifier.weight"])
    fields = ModelConfig(
        name="hybrid_r50_b16" if backbone else "vit_b16",
        head="linear",
        patch_size=names.square(config["patch_size"], "patch_size"),
        embed_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        backbone=backbone,
        activation=names.our_activation(config["hidden_act"], ACTIVATIONS, "transformers"),
        qkv_bias=config["qkv_bias"],
        norm_eps=config["layer_norm_eps"],
        dropout=config["hidden_dropout_prob"],
        attention_dropout=config["attention_probs_dropout_prob"],
    )
    return names.classifier(
        fields,
        config["image_size"],
        classes,
        config["num_channels"],
        weights,
        mask_token="embeddings.mask_token" in weights,
        pooler="pooler.dense.weight" in weights or "pooler.dense.bias" in weights,
    )


def _entries(model: Classifier) -> Iterator[Entry]:
    """All parameters of `model`, under the names of transformers' model without a head."""
    yield viewed("encoder.cls_token_embedding.weight", "embeddings.cls_token", 2)
    yield viewed("encoder.token_pos_embedding.local", "embeddings.position_embeddings", 1)
    if model.encoder.mask_token is not None:
        yield viewed("encoder.mask_token", "embeddings.mask_token", 2)
    projection = "encoder.patch_embed"
    if backbone := names.backbone_of(model):
        yield from bit_entries(backbone)
        projection += ".projection"
    yield from affine(projection, "embeddings.patch_embeddings.projection")
    for index, block in enumerate(names.blocks_of(model.encoder)):
        ours, theirs = f"encoder.layers.{index}.", f"encoder.layer.{index}."
        yield from affine(f"{ours}norm1", f"{theirs}layernorm_before")
        for part in ("weight", "bias") if block.attn.qkv.bias is not None else ("weight",):
            three = (f"{theirs}attention.attention.{x}.{part}" for x in ("query", "key", "value"))
            yield stacked(f"{ours}attn.qkv.{part}", three)
        yield from affine(f"{ours}attn.proj", f"{theirs}attention.output.dense")
        yield from affine(f"{ours}norm2", f"{theirs}layernorm_after")
        yield from affine(f"{ours}mlp.fc1", f"{theirs}intermediate.dense")
        yield from affine(f"{ours}mlp.fc2", f"{theirs}output.dense")
    yield from affine("encoder.ln_post", "layernorm")
    if model.pooler is not None:
        yield from affine("pooler.dense", "pooler.dense")
    if model.num_classes:
        yield from affine("head", "classifier")
