"""timm's config.json: architecture, classes, preprocessing."""

from __future__ import annotations

import math
from typing import Any

from . import timm_arguments, timm_table
from .entries import Weights
from .names import ImageSettings, class_names, three
from .timm_backbone import BACKBONE

# Units in each stage of timm's ResNets -> a model of timm's that has it; all other sizes are arguments.
TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
INTERPOLATIONS = ("bilinear", "bicubic")
# What timm takes where a pretrained_cfg does not say it.
USUAL: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def timm_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The config.json of timm's hub form, from `config` of `to_peer`; ValueError for what it cannot express.

    facts: the keys of `weights_file.FACTS`.
    """
    arguments = dict(config)
    if arguments.pop("norm_eps") != timm_arguments.EPS:
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
    size, crop = known["tile_size"], known.get("eval_crop", True)
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": config["embed_dim"],
        "global_pool": config["global_pool"],
        "model_args": arguments,
        "label_names": class_names(facts),
        "objective": facts.get("objective", "softmax"),  # read again by `init=`; timm passes over it
        "pretrained_cfg": {
            "input_size": [config["in_chans"], size, size],
            "num_classes": classes,
            "interpolation": known.get("eval_resample", "bicubic"),
            "crop_pct": _crop_pct(size, known.get("eval_resize") or size) if crop else 1.0,
            "crop_mode": "center" if crop else "squash",
            "mean": list(known["mean"]),
            "std": list(known["std"]),
            "first_conv": "patch_embed.proj" if backbone is None else f"{BACKBONE}stem.conv",
            "classifier": "head",
        },
    }


def _crop_pct(size: int, short: int) -> float:
    """The crop_pct from which timm, which rounds down, gets a short side of `short` pixels."""
    share = size / short
    return share if math.floor(size / share) == short else math.nextafter(share, 0.0)


def timm_arguments_of(config: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The arguments of the timm model that a config.json names, from the table of timm's architectures.

    What the file's model_args say replaces the table. ValueError for a name that the table does not have,
    unless model_args say everything, and for what our models cannot compute.
    """
    name = config["architecture"]
    given = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
    found = timm_table.find(name)
    said = given | ({"global_pool": config["global_pool"]} if config.get("global_pool") else {})
    if found is None and (lacking := timm_arguments.missing(said)):
        raise ValueError(
            f"architecture='{name}' is none of timm's that are known here (a table in docs/peers.md), and "
            f"without that its model_args must say what the model is, but lack {', '.join(lacking)}"
        )
    row = dict(found.arguments) if found else {}
    if "norm_layer" in given:
        row.pop("norm_eps", None)
    known = _pretrained(config)
    size = known.get("input_size") or (found.preprocessing if found else USUAL)["input_size"]
    arguments = {"img_size": list(size[1:])} | row | given
    if pool := stated_pool(config):
        arguments |= {"global_pool": pool, "fc_norm": given.get("fc_norm", "fc_norm.weight" in weights)}
    arguments["num_classes"] = len(weights["head.weight"]) if "head.weight" in weights else 0
    try:
        timm_arguments.check(arguments)
    except ValueError as error:
        raise ValueError(f"timm's {name} cannot be computed: {error}") from None
    if found and "backbone" not in arguments and any(key.startswith(BACKBONE) for key in weights):
        raise ValueError(
            f"the weights hold a ResNet before the Transformer, which timm's {name} does not have"
        )
    return arguments


def stated_pool(config: dict[str, Any]) -> str | None:
    """The global_pool that config.json names outside of its model_args, where the architecture has another.

    timm writes there the pool of the model that the file holds; ValueError where model_args differ.
    """
    stated, given = config.get("global_pool"), (config.get("model_args") or {}).get("global_pool")
    if stated and given and stated != given:
        raise ValueError(f"global_pool is {stated!r}, but in model_args {given!r}: only one can be right")
    found = timm_table.find(config["architecture"])
    usual = timm_arguments.DEFAULTS | (found.arguments if found else {})
    return stated if stated not in (None, "", given, usual["global_pool"]) else None


def timm_weights(config: dict[str, Any], arguments: dict[str, Any], weights: Weights) -> Weights:
    """The weights that timm takes: those of SigLIP without its pool, where the model has another one."""
    if "siglip" not in config["architecture"] or arguments.get("global_pool") == "map":
        return weights
    return {name: value for name, value in weights.items() if not name.startswith("attn_pool.")}


def position_mode(config: dict[str, Any]) -> str | None:
    """How timm resizes the positions of this architecture, as `resize` of `load_peer`."""
    return "bilinear_centers" if "flexi" in config["architecture"] else None


def timm_preprocessing(config: dict[str, Any]) -> ImageSettings:
    """Keys of `data` from a timm config.json; ValueError for what evaluation cannot do.

    What the file does not say is as timm has it for the first weights of the architecture; a note says so.
    """
    stated = {key: value for key, value in _pretrained(config).items() if value is not None}
    found = timm_table.find(config["architecture"])
    known = (found.preprocessing if found else USUAL) | stated
    notes: list[str] = []
    lacking = [key for key in ("interpolation", "crop_pct", "mean", "std") if key not in stated]
    if lacking:
        source = found.name if found else "models that do not say it"
        notes.append(f"config.json does not say {', '.join(lacking)}: taken as timm has it for {source}")
    interpolation, share = known["interpolation"], known["crop_pct"]
    mode = stated.get("crop_mode", "center" if "crop_pct" in stated else known["crop_mode"])
    if interpolation not in INTERPOLATIONS or mode not in ("center", "squash"):
        raise ValueError(f"interpolation={interpolation}, crop_mode={mode}: not what evaluation can do")
    size = _side(config, known)
    if not 0 < share <= 1:
        raise ValueError(
            f"crop_pct={share}: not what evaluation can do, which needs more than 0 and at most 1"
        )
    short = math.floor(size / share)
    if mode == "squash" and short > size:
        notes.append(
            f"crop_mode is squash and crop_pct {share:g}: timm resizes whole images to {short}x{short} and "
            f"crops them, here they are resized to {size}x{size}"
        )
    data = {
        "eval_crop": mode == "center",
        "eval_resize": short if short > size and mode == "center" else 0,
        "eval_resample": interpolation,
        "mean": three(known["mean"]),
        "std": three(known["std"]),
    }
    return ImageSettings(data, tuple(notes))


def _side(config: dict[str, Any], known: dict[str, Any]) -> int:
    """The side of the images that the model gets: model_args say it before pretrained_cfg."""
    given = (config.get("model_args") or {}).get("img_size")
    size = given or known["input_size"][1:]
    return size if isinstance(size, int) else size[-1]


def _pretrained(config: dict[str, Any]) -> dict[str, Any]:
    """The pretrained_cfg of a config.json; the whole of one by an early timm, which had no such key."""
    known = config.get("pretrained_cfg", config)
    return known or {}


def timm_classes(config: dict[str, Any]) -> list[str] | None:
    """The names of the classes that a config.json gives, None if it gives none."""
    known = _pretrained(config)
    names = config.get("label_names") or known.get("label_names") or known.get("labels")
    return list(names) if names else None
