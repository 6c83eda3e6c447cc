"""The arrays of a reference file that follow from its inputs and weights, computed in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import google, hf, images, timm, torchtune
from .maps import resize_table

Archive = dict[str, NDArray[Any]]


def computed(name: str, data: Archive) -> Archive:
    """What follows from the inputs and the weights of a file of the kind `name`."""
    config = json.loads(str(data["config_json"]))
    with torch.no_grad():
        found = COMPUTATIONS[name](config, data)
    return {
        key: value.numpy().astype(np.float64 if key.startswith("ref64/") else np.float32)
        if value.is_floating_point()
        else value.numpy()
        for key, value in found.items()
    }


def _weights(data: Archive, *prefixes: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): torch.from_numpy(value).double()
        for prefix in prefixes
        for key, value in data.items()
        if key.startswith(prefix)
    }


def _both(key: str, value: Tensor) -> dict[str, Tensor]:
    """The same number as a file has it in both precisions."""
    return {f"outputs/{key}": value, f"ref64/{key}": value}


def _compute_torchtune(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    w, pictures = _weights(data, "weights/"), torch.from_numpy(data["inputs/images"]).double()
    ratio = torch.from_numpy(data["inputs/aspect_ratio"]) if "inputs/aspect_ratio" in data else None

    def run(**changed: Any) -> torchtune.Output:
        return torchtune.forward(config | changed, w, pictures, ratio)

    if not config.get("output_cls_projection"):
        found = run()
        hidden = {f"outputs/hidden_{index}": state for index, state in enumerate(found.hidden)}
        return _both("x", found.x) | hidden | {"stages/after_token_pos": found.embedded}
    tokens = run(output_cls_projection=False)
    result = _both("append_proj", run().x) | {"outputs/append_tokens": tokens.x}
    result |= {f"outputs/append_hidden_{index}": state for index, state in enumerate(tokens.hidden)}
    result["outputs/append_proj_of_last_token"] = tokens.x[..., -1:, :] @ w["cls_projection.weight"]
    result["outputs/prepend_proj"] = run(append_cls_token=False).x
    result["outputs/prepend_tokens"] = run(append_cls_token=False, output_cls_projection=False).x
    return result


def _compute_stretched(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    w = _weights(data, "before/")
    result: dict[str, Tensor] = {}
    for target, sizes in config["targets"].items():
        tables = torchtune.stretched(w, sizes)
        result |= {f"after/{target}/{name}": table for name, table in tables.items()}
        pictures = torch.from_numpy(data[f"inputs/{target}/images"]).double()
        ratio = torch.from_numpy(data[f"inputs/{target}/aspect_ratio"])
        result[f"outputs/{target}/x"] = torchtune.forward(sizes, w | tables, pictures, ratio).x
    return result


def _compute_hf(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    w = _weights(data, "weights/") | {f"vit.{k}": v for k, v in _weights(data, "weights_base/").items()}
    pictures = torch.from_numpy(data["inputs/pixel_values"]).double()
    found = hf.forward(config, w, pictures)
    masked = hf.forward(config, w, pictures, torch.from_numpy(data["inputs/bool_masked_pos"]))
    result = _both("logits", found.logits) | _both("pooler_output", found.pooled)
    result |= {f"outputs/hidden_{index}": state for index, state in enumerate(found.hidden)}
    result["outputs/attention_0"] = found.attentions[0]
    result["outputs/last_hidden_state"] = found.tokens
    result["outputs/masked_last_hidden_state"] = masked.tokens
    if found.features is not None and found.stem is not None:
        result |= {"outputs/feature_map": found.features, "outputs/backbone_stem": found.stem}
    for key in [key for key in data if key.startswith("inputs/interp_")]:
        case, pictures = key.split("/")[1], torch.from_numpy(data[key]).double()
        for version, mode in (("", "bicubic_offset"), ("_v457", "bicubic_centers")):
            found = hf.forward(config, w, pictures, mode=mode)
            result[f"outputs/{case}/logits{version}"] = found.logits
            result[f"outputs/{case}/pos{version}"] = found.positions
        if found.features is not None:
            result[f"outputs/{case}/feature_map"] = found.features
    return result


def _compute_google(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    w = _weights(data, "npz/")
    pictures, larger = (
        torch.from_numpy(data[f"inputs/{name}"]).double() for name in ("images_nhwc", "finetune_images_nhwc")
    )
    found, tuned = google.forward(config, w, pictures), google.forward(config, w, larger)
    result = _both("logits", found.logits) | {"outputs/representation": found.representation}
    result |= {"outputs/encoder_tokens": found.tokens, "outputs/finetune_pos_embedding": tuned.positions}
    result["outputs/finetune_features"] = tuned.tokens[:, 0]
    _, tokens = timm.forward(*timm.from_google(config, w), pictures.permute(0, 3, 1, 2))
    old, new = (round((table.shape[1] - 1) ** 0.5) for table in (found.positions, tuned.positions))
    table = resize_table(w[google.POSITIONS], (old, old), (new, new), 1, "bilinear_centers")
    return result | {"outputs_timm/tokens_gelu_erf": tokens, "outputs_timm/finetune_pos_embed": table}


def _compute_timm(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for case, sizes in config.items():
        pictures = torch.from_numpy(data[f"inputs/{case}"]).double()
        logits, tokens = timm.forward(sizes, _weights(data, f"weights/{case}/"), pictures)
        result |= _both(f"{case}/logits", logits) | {f"outputs/{case}/tokens": tokens}
    return result


def _compute_tables(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    result = {}
    for index, case in enumerate(config["google_zoom"]):
        table = torch.from_numpy(data[f"google_zoom/{index}/in"])
        old, new = ((case[key],) * 2 for key in ("old_grid", "new_grid"))
        result[f"google_zoom/{index}/out"] = resize_table(
            table, old, new, int(case["class_token"]), "bilinear"
        )
    for index, case in enumerate(config["timm"]):
        table = torch.from_numpy(data[f"timm/{index}/in"])
        mode = case["interpolation"] + ("" if case["antialias"] else "_centers")
        sizes = case["old_size"], case["new_size"], case["num_prefix_tokens"]
        result[f"timm/{index}/out"] = resize_table(table, *sizes, mode)
    return result


def _compute_processor(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    return {
        f"{name}/{key.removeprefix('in/')}": torch.from_numpy(images.processed(data[key], sizes))
        for name, sizes in config.items()
        for key in [key for key in data if key.startswith("in/")]
    }


def _compute_tiles(config: dict[str, Any], data: Archive) -> dict[str, Tensor]:
    result = {}
    for i, case in enumerate(config["tile_crop"]):
        image = torch.from_numpy(data[f"tile_crop/{i}/in"])
        result[f"tile_crop/{i}/out"] = images.tile_crop(image, case["tile_size"])
    for i, case in enumerate(config["resize_with_pad"]):
        image, canvas = torch.from_numpy(data[f"resize_with_pad/{i}/in"]), tuple(case["target_size"])
        padded = images.resize_with_pad(image, canvas, case["max_size"], case["resample"])
        result[f"resize_with_pad/{i}/out"] = padded
    for i, case in enumerate(config["clip_transform"]):
        side, to_max = case["tile_size"], case["resize_to_max_canvas"]
        image = torch.from_numpy(data[f"clip_transform/{i}/in_uint8_hwc"]).permute(2, 0, 1) / 255
        canvas = images.best_canvas(image.shape[1:], images.supported(case["max_num_tiles"], side), to_max)
        padded = images.resize_with_pad(image, canvas, None if to_max else side, case["resample"])
        mean, std = (torch.tensor(case[f"image_{k}"])[:, None, None] for k in ("mean", "std"))
        result[f"clip_transform/{i}/image"] = images.tile_crop((padded - mean) / std, side)
        result[f"clip_transform/{i}/aspect_ratio"] = torch.tensor(canvas) // side
    return result


def canvases(data: dict[str, Any]) -> dict[str, Any]:
    """The table of canvases with every answer to what `data` asks for."""
    modes = (("no_max_canvas", False), ("max_canvas", True))

    def row(image: list[int], tiles: int, side: int) -> dict[str, Any]:
        answers: dict[str, Any] = {"image": image}
        for mode, to_max in modes:
            canvas = images.best_canvas(image, images.supported(tiles, side), to_max)
            size = images.resized(image, canvas, None if to_max else side)
            grid = [length // side for length in canvas]
            answers[mode] = {"canvas": list(canvas), "tiles": grid, "resized": list(size)}
        return answers

    lists = data["find_supported_resolutions"]
    custom = data["custom_resolutions"]["resolutions"]
    return {
        "find_supported_resolutions": [
            case | {"resolutions": images.supported(case["max_num_tiles"], case["tile_size"])}
            for case in lists
        ],
        "tables": [
            table
            | {
                "rows": [
                    row(one["image"], table["max_num_tiles"], table["tile_size"]) for one in table["rows"]
                ]
            }
            for table in data["tables"]
        ],
        "custom_resolutions": {
            "resolutions": custom,
            "rows": [
                {"image": one["image"]}
                | {mode: list(images.best_canvas(one["image"], custom, to_max)) for mode, to_max in modes}
                for one in data["custom_resolutions"]["rows"]
            ],
        },
    }


COMPUTATIONS: dict[str, Callable[[dict[str, Any], Archive], dict[str, Tensor]]] = {
    "tt_single_tile": _compute_torchtune,
    "tt_tiled": _compute_torchtune,
    "tt_append_cls_proj": _compute_torchtune,
    "tt_state_dict_interp": _compute_stretched,
    "hf_vit": _compute_hf,
    "hf_vit_hybrid": _compute_hf,
    "google_vit_npz": _compute_google,
    "google_hybrid_npz": _compute_google,
    "timm": _compute_timm,
    "pos_embed_resize": _compute_tables,
    "hf_image_processor": _compute_processor,
    "tile_preprocess": _compute_tiles,
}
