"""timm's VisionTransformer, plain and behind its ResNetV2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.model.block import LayerScale
from pretrain.model.classifier import Classifier
from pretrain.model.variants import resolve

from . import names
from . import timm_arguments as arguments
from .entries import Entry, Weights, affine, give, load, same, tensor, viewed
from .timm_arguments import ACTIVATIONS, DEFAULTS, POOLS
from .timm_backbone import BACKBONE, infer_resnet, read_resnet, resnet_arguments, resnet_entries
from .timm_parallel import as_blocks


def load_peer(given: dict[str, Any], weights: Weights, resize: str | None) -> Classifier:
    """As `load_peer` of the package; given: arguments of timm's VisionTransformer."""
    arguments.check(given)
    config = DEFAULTS | given
    with torch.device("meta"):
        model = _build(config, weights)
    arch = resolve(model.config)
    if arch.parallel:
        weights = as_blocks(weights, arch.embed_dim, arch.mlp_dim)
    encoder, grid = model.encoder, model.geometry.grid
    embedded = 0 if config["no_embed_class"] else encoder.prefix
    weights = names.fitted(weights, "pos_embed", [], grid, embedded, resize or "bicubic")
    entries = list(_entries(model))
    load(model, entries, _registers_placed(model, weights, config["no_embed_class"]))
    return model.eval()


def to_peer(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As `to_peer` of the package; of a hybrid also `backbone`, the arguments of its ResNetV2."""
    model = names.classifier_only("timm", model)
    fields, arch = model.config, resolve(model.config)
    names.refuse(
        "timm",
        {
            "the two-layer head": fields.head != "linear",
            "a pooler": model.pooler is not None,
            "mask tokens": model.encoder.mask_token is not None,
            "parallel branches over one norm": arch.parallel,
            "a backbone that is not timm's ResNetV2 of 32 groups": (
                arch.backbone is not None and arch.backbone != read_resnet(resnet_arguments(arch.backbone))
            ),
        },
    )
    behind_pool = fields.final_norm == "pooled"
    config: dict[str, Any] = {
        "img_size": model.tile_size if isinstance(model.tile_size, int) else list(model.tile_size),
        "patch_size": arch.patch_size,
        "in_chans": model.encoder.in_channels,
        "num_classes": model.num_classes,
        "global_pool": next(theirs for theirs, ours in POOLS.items() if ours == fields.pool),
        "embed_dim": arch.embed_dim,
        "depth": arch.num_layers,
        "num_heads": arch.num_heads,
        "mlp_ratio": _ratio(arch.mlp_dim, arch.embed_dim),
        "qkv_bias": arch.qkv_bias,
        "qk_norm": arch.qk_norm,
        "init_values": fields.layer_scale,
        "class_token": arch.class_token,
        "reg_tokens": fields.registers,
        "pre_norm": fields.pre_norm,
        "fc_norm": behind_pool,
        "proj_drop_rate": fields.dropout,
        "attn_drop_rate": fields.attention_dropout,
        "drop_path_rate": fields.drop_path,
        "act_layer": names.activation_name(fields.activation, ACTIVATIONS, "timm"),
        "norm_eps": fields.norm_eps,
    }
    if arch.backbone is not None:
        config["backbone"] = resnet_arguments(arch.backbone)
    weights = give(model, list(_entries(model)))
    registers = fields.registers
    if registers:
        table, first = weights["pos_embed"], int(arch.class_token)
        places = table.new_zeros(1, registers, table.shape[2])
        weights["pos_embed"] = torch.cat([table[:, :first], places, table[:, first:]], 1)
    return config, weights


def _ratio(mlp: int, width: int) -> float:
    """The mlp_ratio from which timm, which rounds down, gets a width of `mlp`."""
    ratio = mlp / width
    return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


def _build(config: dict[str, Any], weights: Weights) -> Classifier:
    pool, fc_norm = POOLS[config["global_pool"]], config["fc_norm"]
    behind_pool = pool == "mean" if fc_norm is None else fc_norm
    resnet = config.get("backbone", config.get("resnet"))
    if resnet is None and any(name.startswith(BACKBONE) for name in weights):
        resnet = infer_resnet(weights)
    backbone = read_resnet(resnet) if resnet else None
    fields = ModelConfig(
        name="hybrid_r50_b16" if backbone else "vit_b16",
        head="linear",
        pool=pool,
        class_token=config["class_token"],
        pre_norm=config["pre_norm"],
        final_norm="pooled" if behind_pool else "tokens",
        patch_size=names.square(config["patch_size"], "patch_size"),
        embed_dim=config["embed_dim"],
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_dim=int(config["embed_dim"] * config["mlp_ratio"]),
        backbone=backbone,
        activation=names.our_activation(config["act_layer"] or "gelu", ACTIVATIONS, "timm"),
        qkv_bias=config["qkv_bias"],
        qk_norm=config["qk_norm"],
        parallel=names.name_of(config["block_fn"]) == "ParallelScalingBlock",
        layer_scale=config["init_values"],
        registers=config["reg_tokens"],
        norm_eps=arguments.norm_eps(config),
        dropout=config["proj_drop_rate"],
        attention_dropout=config["attn_drop_rate"],
        drop_path=config["drop_path_rate"],
    )
    return names.classifier(
        fields, config["img_size"], config["num_classes"] or 0, config["in_chans"], weights
    )


def _registers_placed(model: Classifier, weights: Weights, patches_only: bool) -> Weights:
    """The weights with positions as our model has them: for the class token and the patches alone.

    timm's positions of registers are added to the registers. patches_only: whether only patches have
    positions; that of the class token is 0 then.
    """
    encoder = model.encoder
    known = {name: tensor(weights[name]) for name in ("pos_embed", "reg_token") if name in weights}
    prefix, first = encoder.prefix, encoder.prefix - encoder.registers
    if "pos_embed" not in known or known["pos_embed"].ndim != 3:
        return weights
    table = known["pos_embed"]
    if patches_only:
        known["pos_embed"] = torch.cat([table.new_zeros(1, first, table.shape[2]), table], 1)
    elif (
        encoder.registers
        and "reg_token" in known
        and known["reg_token"].shape == table[:, first:prefix].shape
    ):
        known["reg_token"] = known["reg_token"] + table[:, first:prefix]
        known["pos_embed"] = torch.cat([table[:, :first], table[:, prefix:]], 1)
    return dict(weights) | known


def _entries(model: Classifier) -> Iterator[Entry]:
    encoder = model.encoder
    if encoder.cls_token_embedding is not None:
        yield viewed("encoder.cls_token_embedding.weight", "cls_token", 2)
    if encoder.registers:
        yield viewed("encoder.register_tokens", "reg_token", 1)
    yield viewed("encoder.token_pos_embedding.local", "pos_embed", 1)
    projection, backbone = "encoder.patch_embed", names.backbone_of(model)
    if backbone is not None:
        yield from resnet_entries(backbone)
        projection += ".projection"
    yield from affine(projection, "patch_embed.proj", bias=not model.config.pre_norm)
    if model.config.pre_norm:
        yield from affine("encoder.ln_pre", "norm_pre")
    for index, block in enumerate(names.blocks_of(encoder)):
        ours, theirs = f"encoder.layers.{index}.", f"blocks.{index}."
        yield from affine(f"{ours}norm1", f"{theirs}norm1")
        yield from affine(f"{ours}attn.qkv", f"{theirs}attn.qkv", block.attn.qkv.bias is not None)
        if block.attn.q_norm is not None:
            yield from affine(f"{ours}attn.q_norm", f"{theirs}attn.q_norm")
            yield from affine(f"{ours}attn.k_norm", f"{theirs}attn.k_norm")
        yield from affine(f"{ours}attn.proj", f"{theirs}attn.proj")
        if block.norm2 is not None:
            yield from affine(f"{ours}norm2", f"{theirs}norm2")
        yield from _mlp(f"{ours}mlp", f"{theirs}mlp")
        if isinstance(block.ls1, LayerScale):
            yield same(f"{ours}ls1.gamma", f"{theirs}ls1.gamma")
            yield same(f"{ours}ls2.gamma", f"{theirs}ls2.gamma")
    if isinstance(encoder.ln_post, nn.LayerNorm):
        yield from affine("encoder.ln_post", "norm")
    if isinstance(model.pool_norm, nn.LayerNorm):
        yield from affine("pool_norm", "fc_norm")
    if model.pool is not None:
        yield viewed("pool.probe", "attn_pool.latent", 2)
        for module in ("q", "kv", "proj", "norm"):
            yield from affine(f"pool.{module}", f"attn_pool.{module}")
        yield from _mlp("pool.mlp", "attn_pool.mlp")
    if model.num_classes:
        yield from affine("head", "head")


def _mlp(ours: str, theirs: str) -> Iterator[Entry]:
    for module in ("fc1", "fc2"):
        yield from affine(f"{ours}.{module}", f"{theirs}.{module}")
