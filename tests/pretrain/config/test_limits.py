"""Every setting has its range or its choices beside it in the schema; nothing outside of them is taken."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from data_tools.errors import UsageError
from finetune.config import FinetuneConfig
from pretrain.config.keys import known_keys
from pretrain.config.limits import LONGEST_NAME, Limit, check_limits, limit_of
from pretrain.config.loading import load
from pretrain.config.schema import BackboneConfig, Config
from pretrain.config.yaml_values import parse_value
from pretrain.model.variants import resolve


def settings(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """(key, type, field) of every setting."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        key, hint = prefix + item.name, hints[item.name]
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if inner is None:
            yield key, hint, item
        else:
            yield from settings(inner, f"{key}.")


SETTINGS = {key: (hint, limit_of(item)) for key, hint, item in settings(FinetuneConfig)}
NUMBERS = {key: row for key, row in SETTINGS.items() if "int" in str(row[0]) or "float" in str(row[0])}
TEXTS = [key for key, (hint, limit) in SETTINGS.items() if hint is str and not limit.choices]
KEYS = known_keys(FinetuneConfig)
FLAGS = [key for key, (hint, _) in SETTINGS.items() if "bool" in str(hint)]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: shards}\ntrain: {steps: 10}\ninit: x\nmodel: {name: hybrid_r50_b16}\n")
    return path


def as_value(key: str, text: str) -> str:
    """The text as the value of a key, in all places of a list or a tuple."""
    shape = str(SETTINGS[key][0])
    if key == "train.skip":
        return f"[[{text}, {text}]]"
    if shape.startswith("tuple"):
        return f"[{', '.join([text] * len(get_args(SETTINGS[key][0])))}]"
    return f"[{text}]" if shape.startswith("list") else text


def check_value(key: str, text: str) -> None:
    """What `load` does with a setting, without the rest of it."""
    config: Any = FinetuneConfig()
    config.model.backbone = BackboneConfig()
    config.run.name = "x"
    *groups, name = key.split(".")
    setattr(reduce(getattr, groups, config), name, parse_value(text, key, KEYS))
    check_limits(config)


def test_every_number_has_both_ends_of_its_range() -> None:
    for key, (_, limit) in NUMBERS.items():
        low, high = max(limit.above, limit.at_least), min(limit.below, limit.at_most)
        assert -math.inf < low < high < math.inf, key
    assert len(NUMBERS) > 60


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_outside_of_its_range(key: str) -> None:
    limit = NUMBERS[key][1]
    low, high = max(limit.above, limit.at_least), min(limit.below, limit.at_most)
    outside = [low if limit.above == low else low - 1, high if limit.below == high else high * 2 + 1]
    for value in [str(value) for value in (*outside, 10**30)] + [".nan", ".inf", "-.inf", "nan", "1e999"]:
        with pytest.raises(UsageError, match=rf"{key}=.*must be") as error:
            check_value(key, as_value(key, value))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", [-1, 10**9, 0, 1, "yes", "no", "on", "1.0", "", "null", "[]", "{}", "tru"])
@pytest.mark.parametrize("key", random.Random(0).sample(FLAGS, 4))
def test_only_true_and_false_are_true_and_false(key: str, value: object) -> None:
    if value == "null" and "None" in str(SETTINGS[key][0]):
        return
    with pytest.raises(UsageError, match=f"{key}=.*true or false"):
        parse_value(str(value), key, KEYS)


def test_whole_numbers_are_not_made_of_others() -> None:
    for text in ("3.0", "1e3", "true", "0123", "1:30", "'x'", "0x10", "1__0", "९", "[3]", "9" * 5000):
        with pytest.raises(UsageError, match=r"train\.batch_size=.*a whole number"):
            parse_value(text, "train.batch_size", KEYS)
    assert parse_value("1_000", "train.batch_size", KEYS) == 1000


def test_what_has_choices_takes_no_other(recipe: Path) -> None:
    for _, limit in SETTINGS.values():
        others = [f"{word}x" for word in limit.choices] + ["", 1, True] * bool(limit.choices)
        assert not any(map(limit.allows, others)) and all(map(limit.allows, limit.choices))
    with pytest.raises(
        UsageError, match=r"optim\.name=sgdx: it must be one of adamw, sgd; did you mean sgd\?"
    ):
        load(str(recipe), ["optim.name=sgdx"], FinetuneConfig)


@pytest.mark.parametrize("key", [*TEXTS, "data.train", "data.val"])
def test_no_text_has_control_characters(key: str) -> None:
    for text in ("a\nb", "a\rb", "\x1b[31m", "a\0", "a\x85b", "a\u2028b"):
        with pytest.raises(UsageError, match=rf"{key}=.*control characters") as error:
            check_value(key, text)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["run.name", "tracking.project"])
def test_a_name_is_the_name_of_one_file(recipe: Path, key: str) -> None:
    wrong = ["..", ".", "/abs", "a/b", "a\\b", "../x", " a", "a ", " ", "x" * (LONGEST_NAME + 1), "漢" * 100]
    for text in [*wrong, *([""] if key != "run.name" else ())]:
        with pytest.raises(UsageError, match=rf"{key}=.*a name of at most"):
            load(str(recipe), [f"{key}={text}"], FinetuneConfig)
    for text in ("a b", "ünïcödé", "...", "-x", "$(x)", "x" * LONGEST_NAME):
        group, name = key.split(".")
        assert getattr(getattr(load(str(recipe), [f"{key}={text}"], FinetuneConfig), group), name) == text


def test_the_recipes_own_name_is_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.yaml"
    path.write_text("data: {train: shards}\ntrain: {steps: 10}\n")
    with pytest.raises(UsageError, match=r"run\.name="):
        load(str(path), [])


def test_the_defaults_are_allowed() -> None:
    config = Config()
    config.run.name = "x"
    config.model.backbone = BackboneConfig()
    check_limits(config)


def test_a_model_from_elsewhere_is_checked_too() -> None:
    config = Config().model
    for key, value in (
        ("norm_eps", math.nan),
        ("activation", "tanhh"),
        ("embed_dim", "wide"),
        ("registers", True),
    ):
        with pytest.raises(UsageError, match=rf"model\.{key}="):
            resolve(type(config)(**{key: value}))


def test_a_range_says_what_it_is() -> None:
    assert str(Limit(above=0, at_most=1000)) == "above 0 and at most 1000"
    assert str(Limit(at_least=0, below=1)) == "at least 0 and below 1"
    assert str(Limit(choices=("a", "b"))) == "one of a, b"
