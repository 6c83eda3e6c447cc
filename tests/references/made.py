"""Files as the reference data has them, made up here: small random weights and inputs of a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import google, hf, timm, torchtune
from .computed import Archive, canvases, computed

Shapes = Mapping[str, tuple[int, ...]]

# Other sizes than in the files of the same names.
TORCHTUNE = {"tile_size": 16, "patch_size": 8, "embed_dim": 24, "num_layers": 2, "num_heads": 3}
HF = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TIMM = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
GOOGLE = {
    "num_classes": 5,
    "hidden_size": 24,
    "transformer": {"mlp_dim": 40, "num_heads": 3, "num_layers": 2},
    "classifier": "token",
    "finetune_classes": 3,
}
BIT = {
    "embedding_size": 8,
    "hidden_sizes": [16, 48],
    "depths": [2, 1],
    "layer_type": "bottleneck",
    "global_padding": "same",
    "num_groups": 4,
    "out_features": ["stage2"],
    "embedding_dynamic_padding": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tt_single_tile": TORCHTUNE | {"activation": "SiLU", "max_num_tiles": 1, "out_indices": [0, 1]},
    "tt_tiled": TORCHTUNE | {"activation": "SiLU", "max_num_tiles": 4, "out_indices": [1]},
    "tt_append_cls_proj": TORCHTUNE
    | {"activation": "GELU", "max_num_tiles": 2, "out_indices": [0, 1], "append_cls_token": True}
    | {"output_cls_projection": True, "cls_output_dim": 10},
    "tt_state_dict_interp": {
        "source": TORCHTUNE | {"activation": "ReLU", "max_num_tiles": 3, "num_layers": 1},
        "targets": {
            f"tile{side}_max{tiles}": TORCHTUNE
            | {"activation": "ReLU", "max_num_tiles": tiles, "num_layers": 1, "tile_size": side}
            for side, tiles in ((16, 3), (24, 3), (16, 2), (32, 5))
        },
    },
    "hf_vit": HF | {"image_size": 24, "patch_size": 8, "num_labels": 5, "qkv_bias": False},
    "hf_vit_hybrid": HF
    | {"image_size": 32, "patch_size": 1, "num_labels": 5}
    | {"backbone_config": BIT, "backbone_featmap_shape": [1, 48, 4, 4]},
    "google_vit_npz": GOOGLE
    | {"patches": [8, 8], "representation_size": 12, "image_size": 24, "finetune_size": 40},
    "google_hybrid_npz": GOOGLE
    | {"patches": [1, 1], "representation_size": None, "image_size": 16, "finetune_size": 24}
    | {"resnet": {"num_layers": [2], "width_factor": 0.5}},
    "timm": {
        "plain": TIMM | {"num_classes": 5},
        "mean": TIMM
        | {
            "num_classes": 5,
            "global_pool": "avg",
            "qk_norm": True,
            "init_values": 0.1,
            "act_layer": "gelu_tanh",
        },
        "mean of tokens": TIMM
        | {"num_classes": 5, "global_pool": "avg", "fc_norm": False, "pre_norm": True, "qkv_bias": False},
        "attention": TIMM | {"num_classes": 0, "global_pool": "map", "class_token": False},
        "registers": TIMM | {"num_classes": 5, "reg_tokens": 2, "norm_eps": 1e-5, "act_layer": "silu"},
        "patches embedded": TIMM | {"num_classes": 5, "no_embed_class": True, "fc_norm": True},
        "hybrid": TIMM
        | {"num_classes": 5, "img_size": 16, "patch_size": 1}
        | {"resnet": {"layers": [1, 1], "channels": [128, 256], "stem_chs": 32}},
    },
    "pos_embed_resize": {
        "google_zoom": [
            {"old_grid": old, "new_grid": new, "class_token": token}
            for old, new, token in ((4, 7, True), (6, 6, True), (5, 3, True), (2, 5, False))
        ],
        "timm": [
            {"old_size": old, "new_size": new, "num_prefix_tokens": prefix}
            | {"interpolation": mode, "antialias": mode == "bicubic"}
            for old, new, prefix, mode in (
                ([4, 4], [7, 7], 1, "bicubic"),
                ([6, 6], [4, 9], 2, "bicubic"),
                ([3, 5], [6, 4], 0, "bilinear"),
            )
        ],
    },
    "hf_image_processor": {
        "hybrid": {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
        | {"resample": "bicubic (3)", "mean": 0.5, "std": 0.5},
        "vit": {"size": {"height": 20, "width": 20}, "resample": "bilinear (2)", "mean": 0.5, "std": 0.5},
    },
    "tile_preprocess": {
        "tile_crop": [{"tile_size": 8}, {"tile_size": 6}],
        "resize_with_pad": [
            {"target_size": size, "resample": resample, "max_size": longest}
            for size, resample, longest in (
                ([16, 24], "bilinear", None),
                ([24, 8], "bicubic", 8),
                ([8, 16], "nearest", None),
            )
        ],
        "clip_transform": [
            {"tile_size": side, "max_num_tiles": tiles, "resize_to_max_canvas": to_max, "resample": resample}
            | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
            for side, tiles, to_max, resample in (
                (12, 4, False, "bilinear"),
                (12, 4, True, "bilinear"),
                (16, 3, False, "bicubic"),
            )
        ],
    },
}
RATIOS = {"tt_tiled": [(2, 2), (1, 3), (4, 1), (1, 1)], "tt_append_cls_proj": [(1, 2), (2, 1), (1, 1)]}


IMAGES = [[1, 1], [224, 224], [448, 224], [200, 301], [3000, 100], [7, 5000], [640, 480], [449, 897]]
CANVASES = {
    "find_supported_resolutions": [
        {"max_num_tiles": tiles, "tile_size": side} for tiles, side in ((4, 224), (1, 224), (6, 14), (12, 32))
    ],
    "tables": [
        {"max_num_tiles": tiles, "tile_size": side, "rows": [{"image": image} for image in IMAGES]}
        for tiles, side in ((4, 224), (1, 224), (6, 14))
    ],
    "custom_resolutions": {
        "resolutions": [(224, 672), (672, 224), (224, 448), (448, 224), (224, 224)],
        "rows": [{"image": image} for image in IMAGES],
    },
}


@cache
def made(name: str) -> Archive:
    """A file of the kind `name` with inputs and weights of a fixed seed."""
    config = CONFIGS[name]
    random = _Random(sum(name.encode()))
    data = MAKERS[name](config, random)
    data["config_json"] = np.array(json.dumps(config))
    return data | computed(name, data)


def made_canvases() -> dict[str, Any]:
    return canvases(CANVASES)


class _Random:
    """Numbers of a fixed seed on a grid of 1/256, so that float32 has them exactly."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def array(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        values = self._generator.standard_normal(shape) * scale
        return (np.round(values * 256) / 256).astype(np.float32)

    def pixels(self, *shape: int) -> NDArray[np.uint8]:
        return self._generator.integers(0, 256, shape, dtype=np.uint8)

    def weights(self, shapes: Shapes, prefix: str) -> Archive:
        """None is 0, and no scale of a norm is 1."""
        found = {}
        for name, shape in shapes.items():
            is_scale = len(shape) == 1 and name.endswith(("weight", "scale", "gamma"))
            found[prefix + name] = self.array(*shape, scale=0.2) + np.float32(is_scale)
        return found


def _make_torchtune(name: str) -> Callable[[dict[str, Any], _Random], Archive]:
    def make(config: dict[str, Any], random: _Random) -> Archive:
        side, tiles = config["tile_size"], config["max_num_tiles"]
        data = random.weights(torchtune.shapes(config), "weights/")
        ratios = RATIOS.get(name)
        outer = (len(ratios), 1) if ratios else (2, 2)
        data["inputs/images"] = random.array(*outer, tiles, 3, side, side)
        if ratios:
            data["inputs/aspect_ratio"] = np.array(ratios)[:, None]
            for image, (rows, columns) in zip(data["inputs/images"], ratios, strict=True):
                image[:, rows * columns :] = 0
        return data

    return make


def _make_stretched(config: dict[str, Any], random: _Random) -> Archive:
    data = random.weights(torchtune.shapes(config["source"]), "before/")
    for target, sizes in config["targets"].items():
        side = sizes["tile_size"]
        data[f"inputs/{target}/images"] = random.array(1, 1, 2, 3, side, side)
        data[f"inputs/{target}/aspect_ratio"] = np.array([[[1, 2]]])
    return data


def _make_hf(config: dict[str, Any], random: _Random) -> Archive:
    bare = ("vit.pooler.", "vit.embeddings.mask_token")
    weights = random.weights(hf.shapes(config), "")
    data = {
        f"weights_base/{name.removeprefix('vit.')}" if name.startswith(bare) else f"weights/{name}": value
        for name, value in weights.items()
    }
    side = config["image_size"]
    data["inputs/pixel_values"] = random.array(2, 3, side, side)
    patches = weights["vit.embeddings.position_embeddings"].shape[1] - 1
    data["inputs/bool_masked_pos"] = random.array(2, patches) > 0
    for height, width in ((side + 16, side + 16), (side + 8, side + 24)):
        data[f"inputs/interp_{height}x{width}/pixel_values"] = random.array(1, 3, height, width)
    return data


def _make_google(config: dict[str, Any], random: _Random) -> Archive:
    data = random.weights(google.shapes(config), "npz/")
    side, larger = config["image_size"], config["finetune_size"]
    data["inputs/images_nhwc"] = random.array(2, side, side, 3)
    data["inputs/finetune_images_nhwc"] = random.array(1, larger, larger, 3)
    return data


def _make_timm(config: dict[str, Any], random: _Random) -> Archive:
    data: Archive = {}
    for case, sizes in config.items():
        data |= random.weights(timm.shapes(sizes), f"weights/{case}/")
        data[f"inputs/{case}"] = random.array(2, 3, sizes["img_size"], sizes["img_size"])
    return data


def _make_tables(config: dict[str, Any], random: _Random) -> Archive:
    data: Archive = {}
    for index, case in enumerate(config["google_zoom"]):
        data[f"google_zoom/{index}/in"] = random.array(1, case["class_token"] + case["old_grid"] ** 2, 6)
    for index, case in enumerate(config["timm"]):
        rows = case["num_prefix_tokens"] + case["old_size"][0] * case["old_size"][1]
        data[f"timm/{index}/in"] = random.array(1, rows, 6)
    return data


def _make_processor(config: dict[str, Any], random: _Random) -> Archive:
    return {"in/0": random.pixels(30, 52, 3), "in/1": random.pixels(41, 23, 3)}


def _make_tiles(config: dict[str, Any], random: _Random) -> Archive:
    data: Archive = {}
    for index, case in enumerate(config["tile_crop"]):
        data[f"tile_crop/{index}/in"] = random.array(3, 2 * case["tile_size"], 3 * case["tile_size"])
    for index in range(len(config["resize_with_pad"])):
        data[f"resize_with_pad/{index}/in"] = random.array(3, 10 + 9 * index, 21 - 4 * index)
    for index in range(len(config["clip_transform"])):
        data[f"clip_transform/{index}/in_uint8_hwc"] = random.pixels(17 + 13 * index, 40 - 15 * index, 3)
    return data


MAKERS: dict[str, Callable[[dict[str, Any], _Random], Archive]] = {
    "tt_single_tile": _make_torchtune("tt_single_tile"),
    "tt_tiled": _make_torchtune("tt_tiled"),
    "tt_append_cls_proj": _make_torchtune("tt_append_cls_proj"),
    "tt_state_dict_interp": _make_stretched,
    "hf_vit": _make_hf,
    "hf_vit_hybrid": _make_hf,
    "google_vit_npz": _make_google,
    "google_hybrid_npz": _make_google,
    "timm": _make_timm,
    "pos_embed_resize": _make_tables,
    "hf_image_processor": _make_processor,
    "tile_preprocess": _make_tiles,
}
