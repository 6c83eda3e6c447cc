"""timm's config.json: architecture, classes, preprocessing."""

from __future__ import annotations

import math
from typing import Any

from pretrain.model.variants import SIZES

from .timm_backbone import BACKBONE

# Units in each stage of timm's ResNets -> a model of timm's that has it; all other sizes are arguments.
TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
TIMM_EPS = 1e-6
INTERPOLATIONS = ("bilinear", "bicubic")


def timm_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The config.json of timm's hub form, from `config` of `to_peer`; ValueError for what it cannot express.

    facts: the keys of `weights_file.FACTS`.
    """
    arguments = dict(config)
    if arguments.pop("norm_eps") != TIMM_EPS:
        raise ValueError(f"timm's files cannot express model.norm_eps={config['norm_eps']:g}, only 1e-06")
    classes = arguments.pop("num_classes")
    architecture = "vit_base_patch16_224"
    if backbone := arguments.pop("backbone", None):
        layers = tuple(backbone["layers"])
        doubling = [256 * 2**stage for stage in range(len(layers))]
        if layers not in TIMM_HYBRIDS or backbone["stem_chs"] != 64 or backbone["channels"] != doubling:
            raise ValueError(
                f"timm has no ResNet with units {list(layers)} and widths {backbone['channels']}"
            )
        architecture = TIMM_HYBRIDS[layers]
    known = facts["preprocessing"]
    size = known["tile_size"]
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": config["embed_dim"],
        "global_pool": config["global_pool"],
        "model_args": arguments,
        "label_names": facts["classes"],
        "objective": facts.get("objective", "softmax"),  # read again by `init=`; timm passes over it
        "pretrained_cfg": {
            "input_size": [config["in_chans"], size, size],
            "num_classes": classes,
            "interpolation": known.get("eval_resample", "bicubic"),
            "crop_pct": size / (known.get("eval_resize") or size),
            "crop_mode": "center" if known.get("eval_crop", True) else "squash",
            "mean": list(known["mean"]),
            "std": list(known["std"]),
            "first_conv": "patch_embed.proj" if backbone is None else f"{BACKBONE}stem.conv",
            "classifier": "head",
        },
    }


def timm_arguments(config: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a timm model, from its config.json, or from the shapes of weights where that has none.

    ValueError for a model that is not timm's VisionTransformer, or whose number of heads is not known.
    """
    given = dict(config.get("model_args") or {})
    if "vit_" not in config["architecture"]:
        raise ValueError(f"timm's {config['architecture']} is no Vision Transformer of timm's own")
    if "patch_embed.proj.weight" not in weights:
        raise ValueError("the weights lack 'patch_embed.proj.weight'")
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    hybrid = any(name.startswith(BACKBONE) for name in weights)
    heads = next((heads for size, _, _, heads in SIZES.values() if size == width), None)
    head = weights.get("head.weight")
    found = {
        "embed_dim": width,
        "patch_size": patch,
        "in_chans": 3 if hybrid else channels,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "num_classes": 0 if head is None else len(head),
        "class_token": "cls_token" in weights,
        "reg_tokens": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        "pre_norm": "norm_pre.weight" in weights,
        "fc_norm": "fc_norm.weight" in weights,
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "img_size": (config.get("pretrained_cfg") or {}).get("input_size", [3, 224, 224])[1:],
    }
    if "blocks.0.mlp.fc1.weight" in weights:
        found["mlp_ratio"] = len(weights["blocks.0.mlp.fc1.weight"]) / width
    if "blocks.0.ls1.gamma" in weights:
        found["init_values"] = 1e-5
    if "global_pool" in config:
        found["global_pool"] = config["global_pool"]
    if heads is None and "num_heads" not in given:
        raise ValueError(f"config.json has no model_args.num_heads, and {width} is no published width")
    return found | {"num_heads": heads} | given | {"num_classes": found["num_classes"]}


def timm_preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of `data` from a timm config.json; ValueError for what evaluation cannot do."""
    known = config.get("pretrained_cfg") or {}
    interpolation, mode = known.get("interpolation", "bicubic"), known.get("crop_mode", "center")
    if interpolation not in INTERPOLATIONS or mode not in ("center", "squash"):
        raise ValueError(f"interpolation={interpolation}, crop_mode={mode}: not what evaluation can do")
    size = known.get("input_size", [3, 224, 224])[-1]
    short = math.floor(size / known.get("crop_pct", 0.875))
    return {
        "eval_crop": mode == "center",
        "eval_resize": short if short > size and mode == "center" else 0,
        "eval_resample": interpolation,
        "mean": tuple(known.get("mean", (0.5, 0.5, 0.5))),
        "std": tuple(known.get("std", (0.5, 0.5, 0.5))),
    }
