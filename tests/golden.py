"""Every array of a reference file beside ours; tests/bench/golden_table.py prints the differences.

The files are those of the reference data, or the same kinds made up by tests/references.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_tools.augment.transforms import EvalTransform
from data_tools.images.tiles import (
    best_canvas,
    choose_canvas,
    fitted_size,
    possible_canvases,
    resize_with_pad,
    tile_crop,
)
from finetune.formats import load_peer, to_peer
from pretrain.model.inspection import inspect
from pretrain.model.resize import resize_grid

# Of the reference files: for Transformers, for the features of a ResNet and what follows, in float64,
# for position tables, and exactly.
TRANSFORMER, BACKBONE, DOUBLE, TABLE, EXACT = (1e-5, 1e-5), (1e-4, 1e-4), (1e-9, 0.0), (3e-6, 0.0), (0.0, 0.0)

Archive = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """One array of ours and of theirs; tolerance: absolute, relative to theirs."""

    what: str
    ours: NDArray[Any]
    theirs: NDArray[Any]
    tolerance: tuple[float, float]

    @property
    def difference(self) -> float:
        assert self.ours.shape == self.theirs.shape, (self.what, self.ours.shape, self.theirs.shape)
        return float(np.abs(self.ours.astype(np.float64) - self.theirs).max(initial=0))

    def check(self) -> None:
        atol, rtol = self.tolerance
        np.testing.assert_allclose(self.ours, self.theirs, atol=atol, rtol=rtol, err_msg=self.what)


def read(folder: Path, name: str) -> Archive:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def compare(folder: Path, name: str) -> Iterator[Comparison]:
    """All comparisons of one reference file."""
    if name == "canvas_table":
        return compare_canvases(json.loads((folder / "canvas_table.json").read_text()))
    return compare_arrays(name, read(folder, name))


def compare_arrays(name: str, data: Archive) -> Iterator[Comparison]:
    """All comparisons of a file of the kind `name`."""
    with torch.no_grad():
        yield from (FILES | {"timm": _timm})[name](data, json.loads(str(data["config_json"])))


def under(data: Archive, *prefixes: str) -> Archive:
    """The arrays below any of these folders of an archive, by the rest of their names."""
    return {
        key.removeprefix(prefix): value
        for prefix in prefixes
        for key, value in data.items()
        if key.startswith(prefix)
    }


def _pair(what: str, ours: Tensor, theirs: NDArray[Any], tolerance: tuple[float, float]) -> Comparison:
    return Comparison(what, ours.detach().numpy(), theirs, tolerance)


def _torchtune(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    weights = under(data, "weights/")
    images = torch.from_numpy(data["inputs/images"])
    ratio = torch.from_numpy(data["inputs/aspect_ratio"]) if "inputs/aspect_ratio" in data else None
    # torchtune lets images see their padding tiles, ours do not: images without any are the same.
    whole = np.arange(len(images))
    if ratio is not None:
        whole = whole[(ratio.prod(-1) == images.shape[2]).all(1).numpy()]

    def run(
        weights: Archive, dtype: torch.dtype = torch.float32, **changed: Any
    ) -> tuple[Tensor, list[Tensor]]:
        model = load_peer("torchtune", config | changed, weights).to(dtype)
        return model(images.to(dtype), ratio)

    def rows(key: str) -> NDArray[Any]:
        return data[key][whole]

    if "outputs/append_proj" in data:
        bare = {name: value for name, value in weights.items() if not name.startswith("cls_projection")}
        x, hidden = run(weights)
        # torchtune projects the first patch; the file has the projection of the class token beside it.
        theirs = rows("outputs/append_proj_of_last_token").reshape(x[whole].shape)
        yield _pair("append_proj_of_last_token", x[whole], theirs, TRANSFORMER)
        for index, state in enumerate(hidden):
            yield _pair(
                f"append_hidden_{index}", state[whole], rows(f"outputs/append_hidden_{index}"), TRANSFORMER
            )
        x, _ = run(bare, output_cls_projection=False)
        yield _pair("append_tokens", x[whole], rows("outputs/append_tokens"), TRANSFORMER)
        x, _ = run(bare, torch.float64, output_cls_projection=False)
        first = x[whole][..., :1, :] @ torch.from_numpy(weights["cls_projection.weight"]).double()
        yield _pair("ref64/append_proj", first, rows("ref64/append_proj"), DOUBLE)
        x, _ = run(weights, append_cls_token=False)
        yield _pair("prepend_proj", x[whole], rows("outputs/prepend_proj"), TRANSFORMER)
        x, _ = run(bare, output_cls_projection=False, append_cls_token=False)
        yield _pair("prepend_tokens", x[whole], rows("outputs/prepend_tokens"), TRANSFORMER)
        return
    x, hidden = run(weights)
    yield _pair("x", x[whole], rows("outputs/x"), TRANSFORMER)
    for index, state in enumerate(hidden):
        yield _pair(f"hidden_{index}", state[whole], rows(f"outputs/hidden_{index}"), TRANSFORMER)
    x, _ = run(weights, torch.float64)
    yield _pair("ref64/x", x[whole], rows("ref64/x"), DOUBLE)
    yield _embedded(load_peer("torchtune", config, weights), images, ratio, data["stages/after_token_pos"])


def _embedded(model: nn.Module, images: Tensor, ratio: Tensor | None, theirs: NDArray[Any]) -> Comparison:
    """Real tiles behind the token positions."""
    seen = []
    model.token_pos_embedding.register_forward_hook(
        lambda module, args, out: seen.append(args[1].unpack(out))
    )
    model(images, ratio)
    count = 1 if ratio is None else ratio.prod(-1).flatten()[:, None]
    real = torch.arange(images.shape[2]) < count
    return _pair("after_token_pos", seen[0], theirs[real.expand(len(theirs), -1).numpy()], TRANSFORMER)


def _stretched(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    for target, sizes in config["targets"].items():
        model = load_peer("torchtune", sizes, under(data, "before/"))
        _, tables = to_peer(model, "torchtune")
        for name, theirs in under(data, f"after/{target}/").items():
            yield _pair(f"{target}/{name}", tables[name], theirs, TABLE)
        images = torch.from_numpy(data[f"inputs/{target}/images"])
        x, _ = model(images, torch.from_numpy(data[f"inputs/{target}/aspect_ratio"]))
        yield _pair(f"{target}/x", x, data[f"outputs/{target}/x"], TRANSFORMER)


def _transformers(source: str) -> Callable[[Archive, dict[str, Any]], Iterator[Comparison]]:
    tolerance = BACKBONE if source == "hf_vit_hybrid" else TRANSFORMER

    def compare(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
        weights = under(data, "weights/", "weights_base/")
        images = torch.from_numpy(data["inputs/pixel_values"])
        model = load_peer(source, config, weights)
        yield _pair("logits (forward)", model(images), data["outputs/logits"], tolerance)
        found = inspect(model, images)
        yield _pair("logits", found.logits, data["outputs/logits"], tolerance)
        yield _pair("pooler_output", found.pooled, data["outputs/pooler_output"], tolerance)
        yield _pair("last_hidden_state", found.tokens, data["outputs/last_hidden_state"], tolerance)
        for index, state in enumerate(found.hidden_states):
            yield _pair(f"hidden_{index}", state, data[f"outputs/hidden_{index}"], tolerance)
        for index, map_ in enumerate(found.attentions):
            if f"outputs/attention_{index}" in data:
                yield _pair(f"attention_{index}", map_, data[f"outputs/attention_{index}"], tolerance)
        found = inspect(model, images, torch.from_numpy(data["inputs/bool_masked_pos"]))
        yield _pair("masked", found.tokens, data["outputs/masked_last_hidden_state"], tolerance)
        if source == "hf_vit_hybrid":
            backbone = model.encoder.patch_embed.backbone
            yield _pair("backbone_stem", backbone.stem(images), data["outputs/backbone_stem"], BACKBONE)
            yield _pair("feature_map", backbone(images), data["outputs/feature_map"], BACKBONE)
        found = inspect(model.double(), images.double())
        yield _pair("ref64/logits", found.logits, data["ref64/logits"], DOUBLE)
        yield _pair("ref64/pooler_output", found.pooled, data["ref64/pooler_output"], DOUBLE)
        yield from interpolated(data, config, weights)

    def interpolated(data: Archive, config: dict[str, Any], weights: Archive) -> Iterator[Comparison]:
        for key in [key for key in data if key.startswith("inputs/interp_")]:
            case, images = key.split("/")[1], torch.from_numpy(data[key])
            size = {"image_size": list(images.shape[-2:])}
            for version, mode in (("", "bicubic_offset"), ("_v457", "bicubic_centers")):
                model = load_peer(source, config | size, weights, resize=mode)
                table = model.encoder.token_pos_embedding.local[None]
                yield _pair(f"{case}/pos{version}", table, data[f"outputs/{case}/pos{version}"], TABLE)
                theirs = data[f"outputs/{case}/logits{version}"]
                yield _pair(f"{case}/logits{version}", model(images), theirs, tolerance)

    return compare


def _google(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    hybrid = "resnet" in config
    tolerance = BACKBONE if hybrid else TRANSFORMER
    weights = under(data, "npz/")
    images = torch.from_numpy(data["inputs/images_nhwc"]).permute(0, 3, 1, 2)
    model = load_peer("google", config, weights)
    found = inspect(model, images)
    yield _pair("logits", found.logits, data["outputs/logits"], tolerance)
    yield _pair("representation", found.pooled, data["outputs/representation"], tolerance)
    yield _pair("encoder_tokens", found.tokens, data["outputs/encoder_tokens"], tolerance)
    yield _pair("ref64/logits", model.double()(images.double()), data["ref64/logits"], DOUBLE)
    size = {"image_size": config["finetune_size"]}
    larger = torch.from_numpy(data["inputs/finetune_images_nhwc"]).permute(0, 3, 1, 2)
    model = load_peer("google", config | size, weights)
    table = model.encoder.token_pos_embedding.local[None]
    yield _pair("finetune_pos_embedding", table, data["outputs/finetune_pos_embedding"], TABLE)
    features = inspect(model, larger).tokens[:, 0]
    yield _pair("finetune_features", features, data["outputs/finetune_features"], tolerance)
    model = load_peer("google", config | size, weights, resize="bilinear_centers")
    table = model.encoder.token_pos_embedding.local[None]
    yield _pair("timm/finetune_pos_embed", table, data["outputs_timm/finetune_pos_embed"], TABLE)
    tokens = inspect(_as_timm(config, weights), images).tokens
    yield _pair("timm/tokens_gelu_erf", tokens, data["outputs_timm/tokens_gelu_erf"], tolerance)


def _as_timm(config: dict[str, Any], weights: Archive) -> nn.Module:
    """Google's weights as timm loads them: exact GELU, timm's ResNet, no head."""
    model = load_peer("google", config, weights)
    model.config.head, model.num_classes = "linear", 0
    if model.config.backbone is not None:
        model.config.backbone.standardize, model.config.backbone.norm_eps = "var", 1e-5
    arguments, weights = to_peer(model, "timm")
    return load_peer("timm", arguments | {"act_layer": "gelu"}, weights)


def _timm(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    for case, sizes in config.items():
        tolerance = BACKBONE if "resnet" in sizes else TRANSFORMER
        images = torch.from_numpy(data[f"inputs/{case}"])
        model = load_peer("timm", sizes, under(data, f"weights/{case}/"))
        found = inspect(model, images)
        yield _pair(f"{case}/logits", found.logits, data[f"outputs/{case}/logits"], tolerance)
        yield _pair(f"{case}/tokens", found.tokens, data[f"outputs/{case}/tokens"], tolerance)
        logits = model.double()(images.double())
        yield _pair(f"ref64/{case}/logits", logits, data[f"ref64/{case}/logits"], DOUBLE)


def _tables(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    for index, case in enumerate(config["google_zoom"]):
        old, new = ((case[key],) * 2 for key in ("old_grid", "new_grid"))
        table = torch.from_numpy(data[f"google_zoom/{index}/in"])[0]
        resized = resize_grid(table, old, new, int(case["class_token"]), "bilinear")
        yield _pair(f"google_zoom/{index}", resized[None], data[f"google_zoom/{index}/out"], TABLE)
    for index, case in enumerate(config["timm"]):
        mode = case["interpolation"] + ("" if case["antialias"] else "_centers")
        table = torch.from_numpy(data[f"timm/{index}/in"])[0]
        resized = resize_grid(table, case["old_size"], case["new_size"], case["num_prefix_tokens"], mode)
        yield _pair(f"timm/{index}", resized[None], data[f"timm/{index}/out"], TABLE)


def _image_processor(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    for name, sizes in config.items():
        crop = "shortest_edge" in sizes["size"]
        side = sizes["crop_size"]["height"] if crop else sizes["size"]["height"]
        resample = sizes["resample"].split()[0]
        transform = EvalTransform(side, 1, sizes["size"]["shortest_edge"] if crop else 0, crop, resample)
        for key in [key for key in data if key.startswith("in/")]:
            tiles, _, _ = transform(data[key], 0)
            ours = (tiles.astype(np.float64) / 255 - sizes["mean"]) / sizes["std"]
            # One 8-bit step: torch's and Pillow's integer arithmetic differ.
            theirs = data[f"{name}/{key.removeprefix('in/')}"].reshape(ours.shape)
            yield Comparison(f"{name}/{key}", ours, theirs, (2 / 255 * 1.0001, 0.0))


def _tiles(data: Archive, config: dict[str, Any]) -> Iterator[Comparison]:
    for i, case in enumerate(config["tile_crop"]):
        tiles = tile_crop(torch.from_numpy(data[f"tile_crop/{i}/in"]), case["tile_size"])
        yield _pair(f"tile_crop/{i}", tiles, data[f"tile_crop/{i}/out"], EXACT)
    for i, case in enumerate(config["resize_with_pad"]):
        image, canvas = torch.from_numpy(data[f"resize_with_pad/{i}/in"]), tuple(case["target_size"])
        padded = resize_with_pad(image, canvas, case["max_size"], case["resample"])
        yield _pair(f"resize_with_pad/{i}", padded, data[f"resize_with_pad/{i}/out"], (1e-5, 0.0))
    for i, case in enumerate(config["clip_transform"]):
        size, to_max = case["tile_size"], case["resize_to_max_canvas"]
        image = torch.from_numpy(data[f"clip_transform/{i}/in_uint8_hwc"]).permute(2, 0, 1)
        grid = choose_canvas(*image.shape[1:], size, case["max_num_tiles"], to_max)
        theirs = data[f"clip_transform/{i}/aspect_ratio"]
        yield Comparison(f"clip_transform/{i}/aspect_ratio", np.array(grid), theirs, EXACT)
        canvas = (grid[0] * size, grid[1] * size)
        padded = resize_with_pad(image / 255, canvas, None if to_max else size, case["resample"])
        mean, std = (torch.tensor(case[f"image_{k}"])[:, None, None] for k in ("mean", "std"))
        tiles = tile_crop((padded - mean) / std, size)
        yield _pair(f"clip_transform/{i}/image", tiles, data[f"clip_transform/{i}/image"], (1e-5, 0.0))


def compare_canvases(data: dict[str, Any]) -> Iterator[Comparison]:
    for case in data["find_supported_resolutions"]:
        found = possible_canvases(case["max_num_tiles"], case["tile_size"])
        what = f"resolutions of {case['max_num_tiles']} tiles"
        yield Comparison(what, np.array(found), np.array(case["resolutions"]), EXACT)
    for table in data["tables"]:
        size, tiles = table["tile_size"], table["max_num_tiles"]
        for mode, to_max in (("no_max_canvas", False), ("max_canvas", True)):
            ours = [list(choose_canvas(*row["image"], size, tiles, to_max)) for row in table["rows"]]
            theirs = [row[mode]["tiles"] for row in table["rows"]]
            yield Comparison(f"{mode} of {tiles} tiles of {size}", np.array(ours), np.array(theirs), EXACT)
            max_size = None if to_max else size
            ours = [fitted_size(*row["image"], tuple(row[mode]["canvas"]), max_size) for row in table["rows"]]
            # Where torchtune would make a side vanish, and raises, ours is one pixel.
            theirs = [[max(1, side) for side in row[mode]["resized"]] for row in table["rows"]]
            yield Comparison(f"{mode} of {tiles}, resized", np.array(ours), np.array(theirs), EXACT)
    custom = data["custom_resolutions"]
    for mode, to_max in (("no_max_canvas", False), ("max_canvas", True)):
        ours = [best_canvas(*row["image"], custom["resolutions"], to_max) for row in custom["rows"]]
        theirs = [row[mode] for row in custom["rows"]]
        yield Comparison(f"{mode} of own canvases", np.array(ours), np.array(theirs), EXACT)


FILES: dict[str, Callable[[Archive, dict[str, Any]], Iterator[Comparison]]] = {
    "tt_single_tile": _torchtune,
    "tt_tiled": _torchtune,
    "tt_append_cls_proj": _torchtune,
    "tt_state_dict_interp": _stretched,
    "hf_vit": _transformers("hf_vit"),
    "hf_vit_hybrid": _transformers("hf_vit_hybrid"),
    "google_vit_npz": _google,
    "google_hybrid_npz": _google,
    "pos_embed_resize": _tables,
    "hf_image_processor": _image_processor,
    "tile_preprocess": _tiles,
}
NAMES = (*FILES, "canvas_table")
