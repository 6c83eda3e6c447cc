"""Settings as other programs write them, and what they call them."""

from __future__ import annotations

import argparse

import pytest

from data_tools.errors import UsageError
from pretrain.config.command_line import parse_arguments
from pretrain.config.keys import known_keys, meant
from pretrain.config.other_names import _OURS
from pretrain.config.schema import Config, ModelConfig
from pretrain.model.variants import resolve


def parse(*arguments: str) -> list[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--time")
    return parse_arguments(parser, arguments, Config).settings


def test_dashes_before_a_setting_change_nothing() -> None:
    assert parse("x.yaml", "--optim.lr=1e-3", "--time=3", "a.b=c", "--init=x", "--fault=") == [
        *("optim.lr=1e-3", "a.b=c", "init=x", "fault="),
    ]


@pytest.mark.parametrize(
    ("option", "key"),
    [("--lr", "optim.lr"), ("--learning-rate=3", "optim.lr"), ("--img-size", "data.tile_size")],
)
def test_an_option_of_another_program_is_answered_with_our_setting(option: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"written key=value.*did you mean {key}"):
        parse("x.yaml", option, "3")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("train.lr", "optim.lr"), ("lr", "optim.lr"), ("model.image_size", "data.tile_size"), ("bs", "")],
)
def test_other_programs_names_lead_to_ours(theirs: str, ours: str) -> None:
    assert (f"did you mean {ours}?" in meant(theirs, known_keys(Config))) == bool(ours)


def test_the_table_names_only_what_is_ours() -> None:
    keys = known_keys(Config)
    assert set(_OURS.values()) - {"init"} <= keys.keys() and len(_OURS) > 100


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vit_base_patch16_224", "vit_b16"),
        ("google/vit-large-patch32-384", "vit_l32"),
        ("ViT-B/16", "vit_b16"),
        ("vit_h_14", "vit_h14"),
        ("ViT-G/14", "vit_G14"),
        ("vit_base_r50_s16_384", "hybrid_r50_b16"),
        ("R50+ViT-L/32", "hybrid_r50_l32"),
    ],
)
def test_other_programs_models_lead_to_ours(theirs: str, ours: str) -> None:
    with pytest.raises(UsageError, match=f"near it: {ours}$"):
        resolve(ModelConfig(name=theirs))
    resolve(ModelConfig(name=ours))
