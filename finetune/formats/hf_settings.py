"""transformers' config.json and preprocessor_config.json: activations, objective, classes, preprocessing."""

from __future__ import annotations

from typing import Any, NamedTuple

from pretrain.checkpoints.facts import distinct_names

from .names import ImageSettings, class_names, three

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


class Processor(NamedTuple):
    """What one of transformers' image processors does where its file does not say it.

    name: of the class, without what it ends with. square: whether one number as size is height and width, not
    the shortest edge. crops: whether it crops the centre. size, crop: in pixels; crop 0: as size.
    """

    name: str
    square: bool
    crops: bool
    size: int
    crop: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_HALF = (0.5, 0.5, 0.5)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROCESSORS = (
    Processor("ViT", True, False, 224, 0, 2, _HALF, _HALF),
    Processor("DeiT", True, True, 256, 224, 3, _HALF, _HALF),
    Processor("CLIP", False, True, 224, 224, 3, *_CLIP),
    Processor("ViTHybrid", False, True, 224, 224, 3, *_CLIP),
    Processor("Bit", False, True, 224, 224, 3, *_CLIP),
)


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
        "label2id": {name: index for index, name in enumerate(distinct_names(names, len(names)))},
        "torch_dtype": "float32",
    }


def hf_classes(config: dict[str, Any]) -> list[str] | None:
    """The names of the classes that a config.json gives, None if it gives none.

    ValueError if its id2label does not number the classes from 0 on.
    """
    labels = {str(key): name for key, name in (config.get("id2label") or {}).items()}
    numbers = [str(number) for number in range(len(labels))]
    if labels.keys() != set(numbers):
        raise ValueError(f"id2label does not number its {len(labels)} classes from 0 to {len(labels) - 1}")
    return [str(labels[number]) for number in numbers] or None


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


def hf_preprocessing(processor: dict[str, Any], image_size: Any) -> ImageSettings:
    """Keys of `data` from a preprocessor_config.json, and what of it is not done.

    image_size: the model's, as in config.json. ValueError for what evaluation cannot do.
    """
    kind, notes = processor_of(processor)
    size, crop = (_sides(processor.get(key), kind.square) for key in ("size", "crop_size"))
    short, square = size.get("shortest_edge"), size.get("height", kind.size)
    crops = processor.get("do_center_crop")
    crops = kind.crops if crops is None else crops and (kind.crops or kind.name == "")
    if processor.get("do_resize") is False:
        raise ValueError("do_resize=false: evaluation resizes")
    if short and not crops:
        raise ValueError(
            f"size has a shortest_edge, but {kind.name}ImageProcessor does not crop as it is set: give size "
            "a height and width, or name one that crops, such as CLIPImageProcessor with do_center_crop=true"
        )
    if processor.get("do_pad"):
        raise ValueError("do_pad=true: evaluation does not pad")
    if crops is False and processor.get("do_center_crop"):
        notes += ("do_center_crop is passed over, as it was by this processor before transformers 5",)
    for sides in (size, crop):
        if other := sorted(sides.keys() - {"height", "width", "shortest_edge"}):
            raise ValueError(f"{other[0]} of {sides}: only height and width, or shortest_edge, are supported")
        if sides.get("width", sides.get("height")) != sides.get("height"):
            raise ValueError(f"{sides}: only square sizes are supported")
    before = short or square
    side = crop.get("height", crop.get("shortest_edge", kind.crop or before)) if crops else before
    if side > before:
        raise ValueError(f"crop_size {side} is more than {'shortest_edge' if short else 'size'} {before}")
    found: dict[str, Any] = {"eval_crop": bool(short) or side < before}
    if found["eval_crop"]:
        found["eval_resize"] = before if before > side else 0
        if not short:
            notes += (
                f"images are resized to {before}x{before} there, whatever their ratio; here their short side "
                "is, before the crop",
            )
    tile = image_size if isinstance(image_size, int) else image_size[0]
    if side != tile:
        notes += (f"images are of {side} pixels there; here of {tile}, the image_size of the model",)
        found["eval_resize"] = round(found.get("eval_resize", 0) * tile / side)
    resample = processor.get("resample", kind.resample)
    if resample not in RESAMPLE:
        raise ValueError(f"resample={resample}: only 2 (bilinear) and 3 (bicubic) are supported")
    found["eval_resample"] = RESAMPLE[resample]
    # transformers computes (pixel * rescale_factor - mean) / std, we (pixel / 255 - mean) / std.
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    plain = processor.get("do_normalize") is False
    for key, neutral, usual in (("mean", 0.0, kind.mean), ("std", 1.0, kind.std)):
        given = processor.get(f"image_{key}")
        values = three(usual if given is None else given)
        found[key] = tuple((neutral if plain else value) / factor for value in values)
    return ImageSettings(found, notes)


def processor_of(processor: dict[str, Any]) -> tuple[Processor, tuple[str, ...]]:
    """The image processor that a preprocessor_config.json names, or the one that it is written for."""
    full = processor.get("image_processor_type") or processor.get("feature_extractor_type") or ""
    name = full.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    known = next((kind for kind in PROCESSORS if kind.name == name), None)
    if known:
        return known, ()
    size = processor.get("size")
    edge = (
        "shortest_edge" in size if isinstance(size, dict) else bool(size and processor.get("do_center_crop"))
    )
    kind = next(kind for kind in PROCESSORS if kind.name == ("CLIP" if edge else "ViT"))
    notes = (f"{full} is not known: it is read as {kind.name}ImageProcessor",) if full else ()
    mean, std = ((0.5,) * 3, (0.5,) * 3)
    return Processor("", not edge, edge, kind.size, 0, 2, mean, std), notes


def _sides(given: Any, square: bool) -> dict[str, int]:
    """Sizes by name; square: whether one number means height and width, not the shortest edge."""
    if isinstance(given, int):
        return {"height": given, "width": given} if square else {"shortest_edge": given}
    return dict(given or {})
