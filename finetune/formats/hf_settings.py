"""transformers' config.json and preprocessor_config.json: activations, objective, classes, preprocessing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .names import class_names

# transformers' names of activations -> ours.
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
# transformers' problem_type -> our objective.name.
PROBLEMS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "regression",
}
# Pillow's numbers of resampling filters, which transformers writes -> our names.
RESAMPLE = {2: "bilinear", 3: "bicubic"}


def hf_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The config.json of transformers: `config` of `to_peer`, with objective and classes.

    facts: the keys of `weights_file.FACTS`.
    """
    names = class_names(facts) or [f"LABEL_{index}" for index in range(facts["num_classes"])]
    config = {key: value for key, value in config.items() if key != "num_labels"}
    problems = {ours: theirs for theirs, ours in PROBLEMS.items()}
    return config | {
        "problem_type": problems.get(facts.get("objective", "softmax")),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": _ids(names),
        "torch_dtype": "float32",
    }


def _ids(names: Sequence[str]) -> dict[str, int]:
    """The number of each class by its name; equal names have their numbers behind them: "crane (134)"."""
    times, found = Counter(names), dict[str, int]()
    for index, name in enumerate(names):
        key = name if times[name] == 1 else f"{name} ({index})"
        while key in found or (key != name and key in times):
            key = f"{key} ({index})"
        found[key] = index
    return found


def hf_classes(config: dict[str, Any]) -> list[str] | None:
    """The names of the classes that a config.json gives, None if it gives none.

    ValueError if its id2label does not number the classes from 0 on.
    """
    labels = {str(key): name for key, name in (config.get("id2label") or {}).items()}
    numbers = [str(number) for number in range(len(labels))]
    if labels.keys() != set(numbers):
        raise ValueError(f"id2label does not number its {len(labels)} classes from 0 to {len(labels) - 1}")
    return [labels[number] for number in numbers] or None


def hf_objective(config: dict[str, Any]) -> str:
    """Our objective.name for a config.json. Without problem_type, one output means regression.

    ValueError for a problem_type that is not supported.
    """
    problem = config.get("problem_type")
    if problem is None:
        return "regression" if len(config.get("id2label") or ()) == 1 else "softmax"
    if problem not in PROBLEMS:
        raise ValueError(f"problem_type={problem!r}: choose {', '.join(PROBLEMS)}")
    return PROBLEMS[problem]


def hf_preprocessor(facts: dict[str, Any], hybrid: bool) -> dict[str, Any]:
    """The preprocessor_config.json of transformers. facts: the keys of `weights_file.FACTS`."""
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
        # ViT's own processor cannot crop; CLIP's computes the same as that of ViT-Hybrid.
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
    # transformers computes (pixel * rescale_factor - mean) / std, we (pixel / 255 - mean) / std.
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    plain = not processor.get("do_normalize", True)
    for key, usual in (("mean", 0.0), ("std", 1.0)):
        values = processor.get(f"image_{key}") or 0.5
        values = [values] * 3 if isinstance(values, int | float) else values
        found[key] = tuple((usual if plain else value) / factor for value in values)
    return found
