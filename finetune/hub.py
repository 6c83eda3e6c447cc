"""The JSON files beside a peer's weights: architecture, classes, and what is done to images."""

from __future__ import annotations

import math
from typing import Any

from pretrain.model.interchange.timm import BACKBONE
from pretrain.model.variants import SIZES

# What a head's logits are for, as transformers and as we name it.
PROBLEMS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "regression",
}
# Pillow's numbers, as transformers writes them.
RESAMPLE = {2: "bilinear", 3: "bicubic"}
# timm's models behind each of the ResNets that it has; their other sizes are arguments.
TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
TIMM_EPS = 1e-6


def hf_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """config.json of transformers: `to_peer`'s, with the classes."""
    names = facts["classes"] or [f"LABEL_{index}" for index in range(facts["num_classes"])]
    config = {key: value for key, value in config.items() if key != "num_labels"}
    problems = {ours: theirs for theirs, ours in PROBLEMS.items()}
    return config | {
        "problem_type": problems.get(facts.get("objective", "softmax")),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "torch_dtype": "float32",
    }


def hf_objective(config: dict[str, Any]) -> str:
    """What a model of transformers was trained for: one output without a word about it are numbers."""
    problem = config.get("problem_type")
    if problem is None:
        return "regression" if len(config.get("id2label") or ()) == 1 else "softmax"
    if problem not in PROBLEMS:
        raise ValueError(f"problem_type={problem!r}: choose {', '.join(PROBLEMS)}")
    return PROBLEMS[problem]


def hf_preprocessor(facts: dict[str, Any], hybrid: bool) -> dict[str, Any]:
    """preprocessor_config.json of transformers."""
    known = facts["preprocessing"]
    size = known["tile_size"]
    resample = next(n for n, name in RESAMPLE.items() if name == known.get("eval_resample", "bicubic"))
    common = {
        "do_resize": True,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(known["mean"]),
        "image_std": list(known["std"]),
        "do_convert_rgb": True,
    }
    if not known.get("eval_crop", True):
        kind = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
        return kind | common
    return {
        # The plain ViT's own processor cannot crop; CLIP's does what the hybrid's does.
        "image_processor_type": "ViTHybridImageProcessor" if hybrid else "CLIPImageProcessor",
        "size": {"shortest_edge": known.get("eval_resize") or size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
    } | common


def hf_preprocessing(processor: dict[str, Any]) -> dict[str, Any]:
    """Keys of `data` from a preprocessor_config.json; ValueError for what evaluation cannot do."""
    size = processor.get("size") or {}
    if isinstance(size, int):
        size = {"shortest_edge" if processor.get("do_center_crop") else "height": size}
    for key in ("do_resize", "do_center_crop"):
        if processor.get(key) is False and (key == "do_resize" or "shortest_edge" in size):
            raise ValueError(f"{key}=false: evaluation resizes, and crops what has a shortest_edge")
    crop = processor.get("crop_size") or size.get("shortest_edge", 0)
    for sides in (size, crop if isinstance(crop, dict) else {}):
        if sides.get("width", sides.get("height")) != sides.get("height"):
            raise ValueError(f"{sides}: only square sizes are supported")
    found: dict[str, Any] = {"eval_crop": "shortest_edge" in size}
    if "shortest_edge" in size:
        crop = crop if isinstance(crop, int) else crop["height"]
        if crop > size["shortest_edge"]:
            raise ValueError(f"crop_size {crop} is more than shortest_edge {size['shortest_edge']}")
        found["eval_resize"] = size["shortest_edge"] if size["shortest_edge"] > crop else 0
    resample = processor.get("resample", 2)
    if resample not in RESAMPLE:
        raise ValueError(f"resample={resample}: only 2 (bilinear) and 3 (bicubic) are supported")
    found["eval_resample"] = RESAMPLE[resample]
    # Ours is (pixel / 255 - mean) / std.
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    plain = not processor.get("do_normalize", True)
    for key, usual in (("mean", 0.0), ("std", 1.0)):
        values = processor.get(f"image_{key}") or 0.5
        values = [values] * 3 if isinstance(values, int | float) else values
        found[key] = tuple((usual if plain else value) / factor for value in values)
    return found


def timm_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """config.json of timm's hub form; ValueError for what it cannot say."""
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
    """The arguments of a timm model: what config.json says, and the weights where it does not."""
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
    if interpolation not in RESAMPLE.values() or mode not in ("center", "squash"):
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
