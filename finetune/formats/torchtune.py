"""torchtune's tiled Vision Transformer, as its clip_vision_encoder builds it."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.model.block import Block, Mlp
from pretrain.model.embeddings import (
    ClassProjection,
    TiledTokenPositionalEmbedding,
    TilePositionalEmbedding,
    TokenPositionalEmbedding,
)
from pretrain.model.resize import GLOBAL, LOCAL, POST_TILE, PRE_TILE, Geometry, stretch_positions
from pretrain.model.rope import tile_rotation
from pretrain.model.swiglu import SwiGLU
from pretrain.model.vit import VisionTransformer

from .entries import Entry, Weights, affine, give, load, same, stacked, tensor
from .names import activation_name, blocks_of, our_activation, refuse

DEFAULTS: dict[str, Any] = {
    "activation": "SiLU",
    "cls_output_dim": 512,
    "attn_bias": True,
    "use_rope": False,
    "out_indices": None,
    "output_cls_projection": False,
    "max_num_tiles": 4,
    "in_channels": 3,
    "append_cls_token": False,
    "use_tile_pos_embed": True,
}
NEEDED = ("tile_size", "patch_size", "embed_dim", "num_layers", "num_heads")  # arguments without a default
ACTIVATIONS = {"SiLU": "silu", "GELU": "gelu", "ReLU": "relu", "SELU": "selu"}
NORM_EPS = 1e-5

TABLES = {
    LOCAL: "token_pos_embedding.local_token_positional_embedding",
    GLOBAL: "token_pos_embedding.global_token_positional_embedding",
    PRE_TILE: "pre_tile_pos_embed.embedding",
    POST_TILE: "post_tile_pos_embed.embedding",
}


def load_peer(config: dict[str, Any], weights: Weights, resize: str | None) -> VisionTransformer:
    """As `load_peer` of the package; config: arguments of clip_vision_encoder."""
    if resize is not None:
        raise ValueError("torchtune's tables are stretched as torchtune does it: resize must be None")
    for key in NEEDED:
        if key not in config:
            raise ValueError(f"the configuration lacks {key}, which torchtune's clip_vision_encoder needs")
    if unknown := [key for key in config if key not in (*DEFAULTS, *NEEDED)]:
        raise ValueError(f"{unknown[0]!r} is no argument of torchtune's clip_vision_encoder")
    with torch.device("meta"):
        model = _build(DEFAULTS | config)
    load(model, list(_entries(model)), _stretched(model, weights))
    return model.eval()


def to_peer(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As `to_peer` of the package; the config holds arguments of clip_vision_encoder."""
    model = _expressible(model)
    block = next(iter(blocks_of(model)), None)
    table = model.token_pos_embedding
    config: dict[str, Any] = {
        "tile_size": model.tile_size,
        "patch_size": model.patch_embed.patch_size,
        "embed_dim": _width(model),
        "num_layers": len(model.layers),
        "num_heads": block.attn.num_heads if block else 1,
        "activation": activation_name(block.mlp.activation, ACTIVATIONS, "torchtune")
        if block and isinstance(block.mlp, Mlp)
        else "SiLU",
        "attn_bias": block is None or block.attn.qkv.bias is not None,
        "use_rope": model.rope is not None,
        "out_indices": list(model.out_indices) or None,
        "output_cls_projection": model.cls_projection is not None,
        "max_num_tiles": table.max_num_tiles if isinstance(table, TiledTokenPositionalEmbedding) else 1,
        "in_channels": model.in_channels,
        "append_cls_token": model.append_cls_token,
    }
    if isinstance(model.cls_projection, ClassProjection):
        config["cls_output_dim"] = model.cls_projection.weight.shape[1]
    return config, give(model, list(_entries(model)))


def _build(config: dict[str, Any]) -> VisionTransformer:
    width, tiles = config["embed_dim"], config["max_num_tiles"]
    tiled = tiles > 1 and config["use_tile_pos_embed"]
    grid = (config["tile_size"], config["patch_size"])
    layer = Block(
        width,
        config["num_heads"],
        4 * width,
        activation=our_activation(config["activation"], ACTIVATIONS, "torchtune"),
        qkv_bias=config["attn_bias"],
        proj_bias=config["attn_bias"],
        norm_eps=NORM_EPS,
    )
    return VisionTransformer(
        patch_size=config["patch_size"],
        tile_size=config["tile_size"],
        num_layers=config["num_layers"],
        embed_dim=width,
        layer=layer,
        token_pos_embedding=(
            TiledTokenPositionalEmbedding(tiles, width, *grid)
            if tiled
            else TokenPositionalEmbedding(width, *grid)
        ),
        pre_tile_pos_embed=TilePositionalEmbedding(tiles, width) if tiled else None,
        post_tile_pos_embed=TilePositionalEmbedding(tiles, width) if tiled else None,
        cls_projection=(
            ClassProjection(width, config["cls_output_dim"]) if config["output_cls_projection"] else None
        ),
        out_indices=config["out_indices"],
        in_channels=config["in_channels"],
        append_cls_token=config["append_cls_token"],
        rope=tile_rotation(width // config["num_heads"]) if config["use_rope"] else None,
    )


def _entries(model: VisionTransformer) -> Iterator[Entry]:
    yield same("patch_embed.weight", "conv.weight")
    yield same("cls_token_embedding.weight", "cls_token_embedding.weight")
    tiled = isinstance(model.token_pos_embedding, TiledTokenPositionalEmbedding)
    if tiled:
        for ours, theirs in TABLES.items():
            yield same(ours, theirs)
        for module in ("token_pos_embedding", "pre_tile_pos_embed", "post_tile_pos_embed"):
            yield same(f"{module}.gate", f"{module}.gate")
    else:
        yield same(LOCAL, "token_pos_embedding.positional_embedding")
    for norm in ("ln_pre", "ln_post"):
        yield from affine(norm, norm)
    for index, block in enumerate(blocks_of(model)):
        layer = f"layers.{index}."
        bias = block.attn.qkv.bias is not None
        for part in ("weight", "bias") if bias else ("weight",):
            yield stacked(f"{layer}attn.qkv.{part}", (f"{layer}attn.{x}_proj.{part}" for x in "qkv"))
        yield from affine(f"{layer}attn.proj", f"{layer}attn.output_proj", bias)
        yield from affine(f"{layer}norm1", f"{layer}sa_norm")
        yield from affine(f"{layer}norm2", f"{layer}mlp_norm")
        yield from affine(f"{layer}mlp.fc1", f"{layer}mlp.w1")
        yield from affine(f"{layer}mlp.fc2", f"{layer}mlp.w2")
    if model.cls_projection is not None:
        yield same("cls_projection.weight", "cls_projection.weight")


def _stretched(model: VisionTransformer, weights: Weights) -> Weights:
    """The weights with their position tables at the model's sizes, as torchtune's loading makes them."""
    tables = {ours: tensor(weights[theirs]) for ours, theirs in TABLES.items() if theirs in weights}
    if not isinstance(model.token_pos_embedding, TiledTokenPositionalEmbedding) or len(tables) < len(TABLES):
        return weights  # loading names what is missing
    shapes = {name: tuple(value.shape) for name, value in tables.items()}
    old = _geometry(shapes)
    new = Geometry(model.grid, model.token_pos_embedding.max_num_tiles, 1)
    if old is None or old == new:
        return weights
    stretched = {}
    for ours, value in tables.items():
        # torchtune takes the first token for the class token even where it is the last.
        last = model.append_cls_token and ours in (LOCAL, GLOBAL)
        value = stretch_positions(ours, value.roll(1, -2) if last else value, old, new)
        stretched[TABLES[ours]] = value.roll(-1, -2) if last else value
    return dict(weights) | stretched


def _geometry(shapes: dict[str, tuple[int, ...]]) -> Geometry | None:
    """The geometry that a checkpoint's tables were made for; ValueError if it has no square grid.

    None for tables that do not fit each other: loading says which does not fit.
    """
    tokens, tiles = shapes[LOCAL][0], shapes[GLOBAL][0]
    side = isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1:
        raise ValueError(
            f"{TABLES[LOCAL]!r} has shape {list(shapes[LOCAL])}: {tokens} tokens are no square grid and "
            "a class token"
        )
    width = shapes[LOCAL][-1]
    fitting = {
        LOCAL: (tokens, width),
        GLOBAL: (tiles, tiles, tokens, width),
        PRE_TILE: (tiles, tiles, 1, width),
        POST_TILE: (tiles, tiles, 1, width),
    }
    return Geometry((side, side), tiles, 1) if shapes == fitting else None


def _width(model: VisionTransformer) -> int:
    return model.ln_post.weight.shape[0] if isinstance(model.ln_post, nn.LayerNorm) else 0


def _expressible(model: nn.Module) -> VisionTransformer:
    """`model`, which torchtune can express; ValueError otherwise."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"torchtune has a VisionTransformer without a head, not a {type(model).__name__}")
    block = next(iter(blocks_of(model)), None)
    refuse(
        "torchtune",
        {
            "hybrids": not hasattr(model.patch_embed, "patch_size"),
            "tiles that are not square": not isinstance(model.tile_size, int),
            "a patch projection with a bias": getattr(model.patch_embed, "bias", None) is not None,
            "models without a class token": model.cls_token_embedding is None,
            "registers": model.registers > 0,
            "mask tokens": model.mask_token is not None,
            "RMSNorms": any(isinstance(module, nn.RMSNorm) for module in model.modules()),
            "places in the whole image instead of the tile": model.rope is not None
            and not model.rope.within_tile,
            "models without a table of positions": model.token_pos_embedding is None,
            "models without a norm before the first layer": not isinstance(model.ln_pre, nn.LayerNorm),
            "models without a last norm": not isinstance(model.ln_post, nn.LayerNorm),
            f"norms with another epsilon than {NORM_EPS:g}": any(
                module.eps != NORM_EPS for module in model.modules() if isinstance(module, nn.LayerNorm)
            ),
            "a class projection of another kind": not isinstance(
                model.cls_projection, ClassProjection | None
            ),
            "positions of a tile without those of the image": (
                isinstance(model.token_pos_embedding, TiledTokenPositionalEmbedding)
                != (model.pre_tile_pos_embed is not None)
                or (model.pre_tile_pos_embed is None) != (model.post_tile_pos_embed is None)
            ),
        }
        | (
            {
                "a SwiGLU": isinstance(block.mlp, SwiGLU),
                "an MLP that is not 4 times as wide": block.mlp.fc1.out_features != 4 * _width(model),
                "parallel branches": block.norm2 is None,
                "query-key norms": block.attn.q_norm is not None,
                "LayerScale": not isinstance(block.ls1, nn.Identity),
                "biases for some of attention's projections": (
                    (block.attn.qkv.bias is None) != (block.attn.proj.bias is None)
                ),
            }
            if block
            else {}
        ),
    )
    return model
