"""torchtune's tiled VisionTransformer as clip_vision_encoder builds it; its padding tiles are seen by all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layers import Weights, attend, dense, gelu, norm, patches, relu, silu
from .maps import resize

ACTIVATIONS = {"SiLU": silu, "GELU": gelu, "ReLU": relu}
EPS = 1e-5
LOCAL = "token_pos_embedding.local_token_positional_embedding"
GLOBAL = "token_pos_embedding.global_token_positional_embedding"
TILES = ("pre_tile_pos_embed.embedding", "post_tile_pos_embed.embedding")


@dataclass(frozen=True)
class Output:
    """x: (b, images, tiles, tokens, D). hidden: what the layers of out_indices are given, in their order.

    embedded: (b · images, tiles, tokens, D), behind the token positions.
    """

    x: Tensor
    hidden: list[Tensor]
    embedded: Tensor


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, patch, tiles = (config[key] for key in ("embed_dim", "patch_size", "max_num_tiles"))
    tokens = (config["tile_size"] // patch) ** 2 + 1
    found: dict[str, tuple[int, ...]] = {
        "conv.weight": (width, 3, patch, patch),
        "cls_token_embedding.weight": (width,),
    }
    if tiles > 1:
        found |= {LOCAL: (tokens, width), GLOBAL: (tiles, tiles, tokens, width)}
        found |= dict.fromkeys(TILES, (tiles, tiles, 1, width))
        found |= {
            f"{module}.gate": (1,)
            for module in ("token_pos_embedding", "pre_tile_pos_embed", "post_tile_pos_embed")
        }
    else:
        found["token_pos_embedding.positional_embedding"] = (tokens, width)
    norms = ["ln_pre", "ln_post"]
    for layer in (f"layers.{index}." for index in range(config["num_layers"])):
        norms += [f"{layer}sa_norm", f"{layer}mlp_norm"]
        sizes = dict.fromkeys((f"attn.{x}_proj" for x in ("q", "k", "v", "output")), (width, width))
        for name, size in (sizes | {"mlp.w1": (4 * width, width), "mlp.w2": (width, 4 * width)}).items():
            found |= {f"{layer}{name}.weight": size, f"{layer}{name}.bias": size[:1]}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if config.get("output_cls_projection"):
        found["cls_projection.weight"] = (width, config["cls_output_dim"])
    return found


def forward(config: Mapping[str, Any], w: Weights, images: Tensor, ratio: Tensor | None = None) -> Output:
    """images: (b, images, tiles, C, S, S). ratio: (b, images, 2), rows and columns; None for one tile."""
    outer, activation = images.shape[:3], ACTIVATIONS[config["activation"]]
    x = patches(images.flatten(0, 2), w["conv.weight"]).unflatten(0, (-1, outer[2]))
    grids = [] if ratio is None else ratio.flatten(0, 1).tolist()
    if config["max_num_tiles"] > 1:
        x = _with_tiles(x, w, "pre_tile_pos_embed", grids)
    token = w["cls_token_embedding.weight"].expand(*x.shape[:2], 1, -1)
    x = torch.cat([x, token] if config.get("append_cls_token") else [token, x], 2)
    if config["max_num_tiles"] > 1:
        gate = torch.tanh(w["token_pos_embedding.gate"])
        x = x + w[LOCAL] * (1 - gate)
        for image, (rows, columns) in enumerate(grids):
            x[image, : rows * columns] += w[GLOBAL][:rows, :columns].flatten(0, 1) * gate
    else:
        x = x + w["token_pos_embedding.positional_embedding"]
    embedded, tokens = x, x.shape[2]

    def as_given(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, tokens)).unflatten(0, outer[:2])

    x, hidden = norm(x, w, "ln_pre", EPS).flatten(1, 2), []
    for index in range(config["num_layers"]):
        if index in (config.get("out_indices") or ()):
            hidden.append(as_given(x))
        layer = f"layers.{index}."
        y = norm(x, w, f"{layer}sa_norm", EPS)
        q, k, v = (dense(y, w, f"{layer}attn.{name}_proj") for name in "qkv")
        x = x + dense(attend(q, k, v, config["num_heads"])[0], w, f"{layer}attn.output_proj")
        y = norm(x, w, f"{layer}mlp_norm", EPS)
        x = x + dense(activation(dense(y, w, f"{layer}mlp.w1")), w, f"{layer}mlp.w2")
    x = norm(x, w, "ln_post", EPS).unflatten(1, (-1, tokens))
    if config["max_num_tiles"] > 1:
        x = _with_tiles(x, w, "post_tile_pos_embed", grids)
    x = x.unflatten(0, outer[:2])
    if config.get("output_cls_projection"):  # of the first token, which need not be the class token
        x = x[..., :1, :] @ w["cls_projection.weight"]
    return Output(x, hidden, embedded)


def _with_tiles(x: Tensor, w: Weights, module: str, grids: list[list[int]]) -> Tensor:
    """Each real tile (n, tiles, tokens, D) gets what the table has for its row and column."""
    x, gate = x.clone(), torch.tanh(w[f"{module}.gate"])
    for image, (rows, columns) in enumerate(grids):
        table = w[f"{module}.embedding"][:rows, :columns]
        x[image, : rows * columns] += table.flatten(0, 1) * gate
    return x


def stretched(w: Weights, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The position tables of a checkpoint as a model of `config` holds them after load_state_dict.

    Maps of (tiles, tiles) or of all patches of all tiles, bilinear with aligned corners.
    """
    side, tiles = config["tile_size"] // config["patch_size"], config["max_num_tiles"]
    old, old_tiles = round((w[LOCAL].shape[0] - 1) ** 0.5), len(w[GLOBAL])

    def tables(table: Tensor) -> Tensor:
        """(M, M, n, D) -> (tiles, tiles, n, D)."""
        return resize(table.flatten(2), (tiles, tiles), "bilinear").unflatten(2, table.shape[2:])

    patches = resize(w[LOCAL][1:].unflatten(0, (old, old)), (side, side), "bilinear")
    whole = w[GLOBAL][:, :, 1:].unflatten(2, (old, old)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    assert whole.shape[:2] == (old_tiles * old,) * 2
    whole = resize(whole, (tiles * side,) * 2, "bilinear")
    whole = whole.unflatten(1, (tiles, side)).unflatten(0, (tiles, side)).transpose(1, 2).flatten(2, 3)
    found = {LOCAL: torch.cat([w[LOCAL][:1], patches.flatten(0, 1)])}
    found[GLOBAL] = torch.cat([tables(w[GLOBAL][:, :, :1]), whole], 2)
    return found | {name: tables(w[name]) for name in TILES}
