"""A text stays as it is written; YAML is only read where the schema wants something else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_tools.errors import UsageError
from pretrain.config.loading import load, read, save
from pretrain.config.schema import Config

WRITTEN = (
    "0123",
    "1_000",
    "12:30:45",
    "1e3",
    "0x10",
    "yes",
    "true",
    "2020-01-01",
    "1.50",
    ".inf",
    "=",
    "a: b"[:1],
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: shards}\ntrain: {steps: 10}\n")
    return path


@pytest.mark.parametrize(
    "text",
    [*WRITTEN, "x #y", "null", "~", "[a]", "{a: b}", "a: b", "'q'", '"q"', "*x", "&x", "!x", "- x", "%x"],
)
def test_text_on_the_command_line_stays_as_it_is(recipe: Path, text: str) -> None:
    config = load(str(recipe), [f"run.name={text}", f"run.dir={text}"])
    assert (config.run.name, config.run.dir) == (text, text)


@pytest.mark.parametrize("text", WRITTEN)
def test_text_in_a_recipe_stays_as_it_is(recipe: Path, text: str) -> None:
    more = f"run: {{name: {text}}}\noptim: {{freeze: [{text}]}}\n"
    recipe.write_text(f"{recipe.read_text(encoding='utf-8').replace('shards', text)}{more}", encoding="utf-8")
    config = load(str(recipe), [])
    assert (config.run.name, config.data.train, config.optim.freeze) == (text, text, [text])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0123", "0123"),
        ("x #y", "x #y"),
        ("in1k-{0000..1023}.tar", "in1k-{0000..1023}.tar"),
        ("*.tar", "*.tar"),
        ("[012, b]", ["012", "b"]),
        ("[{shards: 012, weight: 3}]", [{"shards": "012", "weight": 3.0}]),
        ("a: b", "a: b"),
        ("'a #b'", "a #b"),
        ("it's", "it's"),
    ],
)
def test_shards_are_text_lists_or_mixtures(recipe: Path, text: str, value: object) -> None:
    assert load(str(recipe), [f"data.train={text}"]).data.train == value


def test_null_is_for_fields_that_may_be_null(recipe: Path) -> None:
    config = load(str(recipe), ["data.val=null", "model.num_classes=null", "model.backbone=null"])
    assert (config.data.val, config.model.num_classes, config.model.backbone) == (None, None, None)
    recipe.write_text(f"{recipe.read_text(encoding='utf-8')}run:\n  name: null\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.yaml, line 4: run\.name=null: it must be a text"):
        load(str(recipe), [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: {lr: 1e-3\n", "not YAML"),
        ("optim: {lr: 1e-3, lr: 2}", r"line 1: optim=\.\.\.: the key lr stands there twice"),
        ("train: {steps: 3}\n\ntrain: {steps: 3}", "the key train stands there twice"),
        ("- a", "it must be a mapping of keys"),
        ("a", "it must be a mapping of keys"),
        ("optim: 3", "line 1: optim is a group of keys"),
        ("optim: [3]", r"optim=\.\.\.: it must be a mapping of keys to values, not a list"),
        ("run: {seed: {a: 3}}", "it must be a whole number, not a mapping"),
        ("run: {name: [a]}", "it must be a text, not a list"),
        ("optim: {freeze: encoder}", r"optim\.freeze=encoder: it must be a list"),
        ("optim: {betas: [0.9, 0.9, 0.9]}", "a list of 2"),
        ("data: {train: &a [*a]}", "hold themselves"),
        ("data: {train: " + "[" * 500, "too deep"),
        ("data: {train: !!python/object:os.system [ls]}", "is not for recipes"),
        ("3: 4", "unknown key 3"),
        ("? [a]\n: 4", "a key must be a word"),
        ("<<: {optim: {lrr: 3}}", "unknown key optim.lrr"),
        ("run:\n  name: ???", r"run\.name=\?\?\?: \?\?\? is no value"),
        ("optim: {lr: 1, freeze: ['???']}", r"optim\.freeze.*\?\?\? is no value"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        load(str(path), [])
    assert str(error.value).isprintable() and "mine.yaml" in str(error.value)


def test_a_part_of_a_recipe_can_be_used_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: &all {lr: 1e-4}\ntrain: {steps: 3}\ndata: {train: x}\n")
    config = Config(**vars(load(str(path), [])))
    path.write_text(path.read_text() + "checkpoint: {<<: {every: 7}, keep: 2}\n")
    assert (config.optim.lr, load(str(path), []).checkpoint.every) == (1e-4, 7)


def test_what_a_run_saves_is_read_back(recipe: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    parts = ["${", "\\${", "\\", "$", "{", "}", "a", ":", " ", "'", '"', "#", "é", "-", "["]
    config = load(str(recipe), [r"data.val=\${x}"])
    assert config.data.val == "${x}"
    for _ in range(4):
        config.data.val, config.run.dir = ("".join(chance.choices(parts, k=12)) for _ in range(2))
        config.data.train = [config.data.val, config.run.dir]
        save(config, tmp_path / "config.yaml")
        assert read(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("key", ["run.name", "run.dir", "data.train", "fault", "model.name"])
def test_what_omegaconf_would_leave_at_its_default_is_refused(recipe: Path, key: str) -> None:
    with pytest.raises(UsageError, match=rf"{key}=\?\?\?: \?\?\? is no value"):
        load(str(recipe), [f"{key}=???"])
