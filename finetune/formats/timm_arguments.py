"""The arguments of timm's VisionTransformer: their defaults, and what our models cannot compute."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from .names import name_of

DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": 1000,
    "global_pool": "token",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_norm": False,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "fc_norm": None,
    "proj_drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "norm_layer": None,
    "act_layer": None,
    "block_fn": "Block",
}
# Two more than timm has: the epsilon of its norms where they are LayerNorms, and a hybrid's ResNetV2.
OURS = ("norm_eps", "backbone")
# Arguments that change no number in evaluation.
IGNORED = (
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate", "pos_drop_rate"),
    *("patch_drop_rate", "weight_init", "fix_init", "device", "dtype"),
)
# Arguments for what our models do not compute, and the values with which they compute it.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_class": ("VisionTransformer",),
    "block_fn": ("Block", "ParallelScalingBlock"),
    "norm_layer": (None, "", "layernorm", "layernormfp32"),
    "mlp_layer": (None, "Mlp"),
    "attn_layer": (None, "", "attn", "Attention"),
    "embed_layer": ("PatchEmbed",),
    "embed_norm_layer": (None,),
    "proj_bias": (True,),
    "final_norm": (True,),
    "pos_embed": ("learn",),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "pool_include_prefix": (False,),
    "use_naflex": (False,),
}
EPS = 1e-6  # of timm's LayerNorm
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "selu": "selu",
    "silu": "silu",
    "swish": "silu",
}
POOLS = {"token": "cls", "avg": "mean", "map": "map"}


def check(arguments: Mapping[str, Any]) -> None:
    """ValueError for an argument that timm does not have, or that asks for what our models cannot compute."""
    unknown = [key for key in arguments if key not in (*DEFAULTS, *OURS, *IGNORED, *FIXED)]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no argument of timm's VisionTransformer that is known here")
    for key, values in FIXED.items():
        value = name_of(arguments.get(key, values[0]))
        plain = value.replace("_", "").lower() if key == "norm_layer" and isinstance(value, str) else value
        if plain not in values:
            only = " or ".join(repr(value) for value in values if value not in (None, ""))
            raise ValueError(f"{key}={value!r}: only {only or 'None'} is supported")
    pool = arguments.get("global_pool", "token")
    if pool not in POOLS:
        raise ValueError(f"global_pool={pool!r}: only {', '.join(POOLS)} are supported")
    if isinstance(arguments.get("backbone"), str):
        raise ValueError(
            f"before the Transformer comes a network with {arguments['backbone']}: only timm's ResNetV2 of "
            "standardised convolutions and GroupNorm is supported"
        )


def norm_eps(arguments: Mapping[str, Any]) -> float:
    """The epsilon of the norms that these arguments ask for."""
    layer = arguments.get("norm_layer")
    keywords: dict[str, Any] = {}
    if isinstance(layer, partial):
        keywords, layer = layer.keywords, layer.func
    if isinstance(layer, type):
        keywords = {"eps": inspect.signature(layer).parameters["eps"].default} | keywords
    return keywords.get("eps", arguments.get("norm_eps", EPS))


def missing(arguments: Iterable[str]) -> list[str]:
    """The arguments that a model needs which is not in the table, and that these lack.

    They are its sizes and all that neither the names nor the shapes of weights show.
    """
    needed = ("patch_size", "embed_dim", "depth", "num_heads", "global_pool", "act_layer", "norm_layer")
    return [key for key in needed if key not in arguments]
