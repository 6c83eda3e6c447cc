"""What fine-tuning takes over from the weights that it starts from, and what stays the recipe's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import write_weights
from jobs import Data, succeed

from data_tools.errors import UsageError
from finetune.adapt import adapt
from finetune.config import TRAINING_FIELDS, load_finetune
from finetune.export import export_folder
from finetune.source import TrainedWeights, open_source
from pretrain.config.schema import ModelConfig
from pretrain.model.build import Model, build_model

RECIPE = "data: {{train: {train}, tile_size: 16, workers: 1}}\ntrain: {{steps: 1, batch_size: 12}}\n"
RECIPE += "engine: {{kind: ddp, precision: fp32}}\ntracking: {{wandb: disabled}}\n"
MAE = ("model.pool=mean", "model.final_norm=pooled")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.yaml"
    path.write_text(RECIPE.format(train=tmp_path))
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of transformers."""
    export_folder(str(write_weights(tmp_path / "small.safetensors")), str(tmp_path / "hf"), "hf")
    return tmp_path / "hf"


def rebuilt(folder: Path, **changes: Any) -> Path:
    """The folder with another preprocessor_config.json."""
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def model_of(recipe: Path, *settings: str) -> tuple[Model, TrainedWeights]:
    config, source = load_finetune(str(recipe), settings)
    with torch.device("meta"):
        return build_model(config, 3), source


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (20, True, "bicubic")),
        ({"resample": 2}, (20, True, "bilinear")),
        ({"size": {"shortest_edge": 16}, "resample": 2}, (0, True, "bilinear")),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2},
            (0, False, "bilinear"),
        ),
    ],
)
def test_the_whole_preprocessing_comes_along(
    recipe: Path, theirs: Path, changes: dict[str, Any], wanted: tuple[int, bool, str]
) -> None:
    rebuilt(theirs, **changes)
    config, source = load_finetune(str(recipe), [f"init={theirs}"])
    data = config.data
    assert (data.eval_resize, data.eval_crop, data.eval_resample) == wanted
    assert (data.mean, data.std) == ((0.4, 0.5, 0.6), (0.5, 0.4, 0.3))
    assert any(f"data.eval_resample={wanted[2]}" in note for note in source.notes)
    assert any("always resized bicubically" in note for note in source.notes) == (wanted[2] == "bilinear")


def test_the_short_side_stays_in_proportion_to_the_tile_and_the_recipe_may_say_otherwise(
    recipe: Path, theirs: Path
) -> None:
    config, source = load_finetune(str(recipe), [f"init={theirs}", "data.tile_size=32"])
    assert config.data.eval_resize == 40
    assert any("data.tile_size=32 (the weights': 16)" in note for note in source.notes)
    config, _ = load_finetune(str(recipe), [f"init={theirs}", "data.eval_resize=24", "data.mean=[0,0,0]"])
    assert (config.data.eval_resize, config.data.mean) == (24, (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_processor_type": "DeiTImageProcessor", "size": {"height": 20, "width": 20}}, "20x20 there"),
        ({"image_processor_type": "AnotherImageProcessor"}, "AnotherImageProcessor is not known"),
        ({"crop_size": {"height": 18, "width": 18}}, "images are of 18 pixels there"),
        (None, "it has no preprocessor_config.json"),
    ],
)
def test_what_is_not_done_as_there_is_said(theirs: Path, changes: dict[str, Any] | None, says: str) -> None:
    if changes is None:
        (theirs / "preprocessor_config.json").unlink()
    else:
        rebuilt(theirs, **changes)
    assert any(says in note for note in open_source(str(theirs)).notes)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("CLIPImageProcessor", (256, True, "bicubic", 0.48145466)),
        ("CLIPImageProcessorFast", (256, True, "bicubic", 0.48145466)),
        ("CLIPFeatureExtractor", (256, True, "bicubic", 0.48145466)),
        ("ViTHybridImageProcessor", (256, True, "bicubic", 0.48145466)),
        ("DeiTFeatureExtractor", (256, True, "bicubic", 0.5)),
        ("ViTFeatureExtractor", (None, False, "bilinear", 0.5)),
    ],
)
def test_a_processor_has_the_defaults_of_its_class(
    theirs: Path, name: str, wanted: tuple[int | None, bool, str, float]
) -> None:
    """One number as size is a square for some, and the short side for others."""
    size = 256 if wanted[1] else 16
    file = {"feature_extractor_type": name, "size": size} | ({"crop_size": 224} if wanted[1] else {})
    (theirs / "preprocessor_config.json").write_text(json.dumps(file))
    found = open_source(str(theirs)).data
    resized = None if wanted[0] is None else round(256 * 16 / 224)
    assert (found.eval_resize or None, found.eval_crop, found.eval_resample) == (resized, *wanted[1:3])
    assert found.mean[0] == wanted[3]


def test_a_mean_of_zero_is_no_missing_mean(theirs: Path) -> None:
    assert open_source(str(rebuilt(theirs, image_mean=0.0))).data.mean == (0.0, 0.0, 0.0)


def test_what_acts_in_training_alone_is_not_inherited(recipe: Path, tmp_path: Path) -> None:
    rates = {"dropout": 0.1, "attention_dropout": 0.2, "drop_path": 0.3}
    assert rates.keys() == TRAINING_FIELDS
    file = write_weights(tmp_path / "trained.safetensors", **rates)
    config, source = load_finetune(str(recipe), [f"init={file}", "optim.freeze=[encoder]"])
    assert all(getattr(config.model, key) == 0 for key in rates)
    assert any("model.dropout=0.1" in note for note in source.notes)
    config, source = load_finetune(str(recipe), [f"init={file}", "model.drop_path=0.1"])
    assert (config.model.dropout, config.model.drop_path) == (0.0, 0.1)


def test_a_linear_probe_sees_the_features_of_the_frozen_body(recipe: Path, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "trained.safetensors", dropout=0.5, attention_dropout=0.5, drop_path=0.5)
    config, source = load_finetune(str(recipe), [f"init={file}", "optim.freeze=[encoder]"])
    probe, images = build_model(config, 3), torch.randn(4, 3, 16, 16)
    probe.load_state_dict({name: source.read(name) for name in source.shapes})
    assert torch.equal(probe.train()(images), source.load(torch.device("cpu"))(images))


def test_mae_is_fine_tuned_with_a_new_norm_behind_the_mean(recipe: Path, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "mae.safetensors", objective="masked_patches")
    model, source = model_of(recipe, f"init={file}", *MAE)
    assert model.geometry.prefix == 1  # the class token stays, although the mean is without it
    with pytest.raises(UsageError, match=r"lacks pool_norm\.weight.*init_missing=\[pool_norm\]"):
        adapt(source, model, "bilinear")
    found = adapt(source, model, "bilinear", ["pool_norm"])
    anew = {name for name, how in found.origin.items() if how == "initialised"}
    assert anew == {"pool_norm.weight", "pool_norm.bias", "head.weight", "head.bias"}
    assert "also anew: pool_norm" in found.summary
    assert "not taken: encoder.ln_post, encoder.mask_token" in found.summary
    first = found.initial_value(model, 0)
    assert first("pool_norm.weight", torch.Size([24])).tolist() == [1.0] * 24
    name = "encoder.layers.1.attn.qkv.weight"
    assert torch.equal(first(name, model.get_parameter(name).shape), source.read(name))


def test_init_missing_names_what_the_model_has(recipe: Path, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "mae.safetensors")
    model, source = model_of(recipe, f"init={file}", *MAE)
    with pytest.raises(UsageError, match=r"no 'pool_nrom'; did you mean pool_norm\?"):
        adapt(source, model, "bilinear", ["pool_nrom"])


def test_mae_from_a_folder_of_timm_trains(recipe: Path, tmp_path: Path, data: Data) -> None:
    recipe.write_text(RECIPE.format(train=data.train), encoding="utf-8")
    export_folder(str(write_weights(tmp_path / "small.safetensors")), str(tmp_path / "mae"), "timm")
    settings = (f"init={tmp_path}/mae", f"run.dir={tmp_path}", *MAE, "init_missing=[pool_norm]")
    assert "also anew: pool_norm, not taken: encoder.ln_post" in succeed("finetune", recipe, *settings)


def test_a_class_token_that_the_weights_lack_is_refused(recipe: Path, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "mean.safetensors", pool="mean")
    model, source = model_of(recipe, f"init={file}", "model.pool=cls")
    with pytest.raises(UsageError, match=r"has no class token.*model\.class_token=false"):
        adapt(source, model, "bilinear")
    assert ModelConfig(**source.facts["model"]).pool == "mean"
