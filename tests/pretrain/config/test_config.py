"""Recipes and key=value become one checked configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from jobs import ROOT

from data_tools.errors import UsageError
from pretrain.config.keys import known_keys
from pretrain.config.loading import OWN_CONFIGS, changes, load, read, save
from pretrain.config.schema import Config


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: shards}\ntrain: {steps: 10}\noptim: {lr: 1e-4}\n")
    return path


def test_key_value_goes_over_the_recipe_and_the_recipe_over_the_schema(recipe: Path) -> None:
    config = load(str(recipe), ["optim.lr=2e-3", "train.batch_size=8", "data.val="])
    assert (config.optim.lr, config.train.batch_size, config.train.steps) == (2e-3, 8, 10)
    assert config.data.val == ""
    assert config.optim.betas == (0.9, 0.999)


def test_a_run_is_named_after_its_recipe(recipe: Path) -> None:
    assert load(str(recipe), []).run.name == "mine"
    assert load(str(recipe), ["run.name=other"]).folder == Path("runs/other")


def test_the_command_lines_duration_replaces_the_recipes(recipe: Path) -> None:
    train = load(str(recipe), ["train.epochs=2"]).train
    assert (train.steps, train.epochs) == (0, 2.0)
    recipe.write_text("data: {train: shards}\ntrain: {epochs: 3}\n", encoding="utf-8")
    train = load(str(recipe), ["train.steps=5"]).train
    assert (train.steps, train.epochs) == (5, 0.0)
    assert load(str(recipe), ["train.steps=0"]).train.epochs == 3.0
    with pytest.raises(UsageError, match=r"one of train\.steps and train\.epochs"):
        load(str(recipe), ["train.steps=5", "train.epochs=2"])


def test_the_projects_recipes_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("configs/cifar10.yaml", ["data.train=x"]).run.name == "cifar10"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/cifar10.yaml").write_text("run: {name: mine}")
    assert load("configs/cifar10.yaml", ["data.train=x", "train.steps=1"]).run.name == "mine"
    with pytest.raises(UsageError, match=re.escape(f"those that come with the project lie in {OWN_CONFIGS}")):
        load("configs/none.yaml", [])


def test_1e_4_is_a_number(recipe: Path) -> None:
    assert load(str(recipe), []).optim.lr == 1e-4


def test_a_saved_configuration_reads_back(recipe: Path, tmp_path: Path) -> None:
    hybrid = ["model.name=hybrid_r50_b16", "model.backbone.depths=[1,1]", "model.backbone.stem=32"]
    for settings in (["model.num_classes=7"], hybrid):
        config = load(str(recipe), settings)
        save(config, tmp_path / "config.yaml")
        assert read(tmp_path / "config.yaml") == config
    assert config.model.backbone.widths == [128, 256]


@pytest.mark.parametrize("where", ["{}", "[{{shards: a}}, {{shards: '{}', weight: 2}}]"])
def test_a_saved_configuration_has_no_secrets_of_urls(recipe: Path, tmp_path: Path, where: str) -> None:
    url = "https://us3r:s3cret@host/x-{000..127}.tar?X-Amz-Signature=t0ken"
    config = load(str(recipe), [f"data.train={where.format(url)}"])
    save(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "https://host/x-{000..127}.tar" in text
    assert not any(secret in text for secret in ("us3r", "s3cret", "t0ken"))
    assert changes(read(tmp_path / "config.yaml"), config) == {}, "a URL signed anew is no change"
    for start in ("", "x" * 20, "x" * 30):
        with pytest.raises(UsageError, match=r"not YAML.*line 1, column") as error:
            load(str(recipe), [f"data.train=[{{{start}: {url}"])
        assert not any(secret[-3:] in str(error.value) for secret in ("us3r", "s3cret", "t0ken"))


@pytest.mark.parametrize("key", [key for key, hint in known_keys(Config).items() if not is_dataclass(hint)])
def test_a_misspelt_key_is_refused_with_its_nearest(recipe: Path, key: str) -> None:
    with pytest.raises(UsageError) as error:
        load(str(recipe), [f"{key}x=1"])
    assert f"unknown key {key}x; did you mean {key}?" in str(error.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim", "key=value"),
        ("optim=3", "optim is a group of keys"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("optim.layer_decay=1.5", "optim.layer_decay"),
        ("data.train=", "data.train is empty"),
        ("data.max_bad_fraction=2", "data.max_bad_fraction"),
    ],
)
def test_a_wrong_value_is_named(recipe: Path, setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load(str(recipe), [setting])


def test_groups_of_processes_are_for_fsdp(recipe: Path) -> None:
    assert load(str(recipe), ["engine.kind=fsdp", "engine.shard_size=2"]).engine.shard_size == 2
    for kind in ("ddp", "deepspeed"):
        with pytest.raises(UsageError, match=f"engine.shard_size=2: engine.kind={kind} does not"):
            load(str(recipe), [f"engine.kind={kind}", "engine.shard_size=2"])


def test_a_recipe_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("data: {train: [")
    with pytest.raises(UsageError, match=r"broken\.yaml: not YAML"):
        load(str(path), [])


@pytest.mark.parametrize("module", ["schema", "loading"])
def test_it_is_imported_without_torch(module: str) -> None:
    code = f"import sys, pretrain.config.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_empty_value_is_said(recipe: Path) -> None:
    before, after = load(str(recipe), ["data.val=x"]), load(str(recipe), ["data.val=", "optim.lr=2"])
    assert changes(before, after) == {"data.val": "x → (empty)", "optim.lr": "0.0001 → 2.0"}
