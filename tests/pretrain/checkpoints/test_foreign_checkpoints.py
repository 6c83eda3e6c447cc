"""Weights out of checkpoints that DeepSpeed and DCP wrote; never unless the user trusts their pickles."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from jobs import Data, script, write_recipe

from data_tools.errors import UsageError
from finetune.source import open_source
from pretrain.checkpoints.__main__ import main
from pretrain.config.loading import load
from pretrain.model.build import build_model
from pretrain.model.init import initial_value


@pytest.fixture(scope="module")
def recipe(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("foreign"), data)


@pytest.fixture(scope="module")
def folder(recipe: Path) -> Path:
    script("pretrain/checkpoints/foreign_checkpoints.py", recipe, recipe.parent, processes=2)
    return recipe.parent


def convert(source: Path, target: Path, recipe: Path, *options: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["import", str(source), str(target), str(recipe), "model.num_classes=3", *options])
    assert ended.value.code == code


@pytest.mark.parametrize("name", ["zero2", "zero2/step5", "zero3", "dcp"])
def test_the_weights_arrive_bit_by_bit(
    folder: Path, recipe: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(folder / name, tmp_path / "a.safetensors", recipe, "--trust-pickle")
    prefix = ", without the prefix 'net.' before their names" if name == "dcp" else ""
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"-> {tmp_path}/a.safetensors{prefix}")
    with torch.device("meta"):
        model = build_model(load(str(recipe), []), 3)
    found = open_source(str(tmp_path / "a.safetensors")).load(torch.device("cpu"))
    for parameter, value in found.named_parameters():
        assert torch.equal(value, initial_value(model, parameter, value.shape, 7)), parameter


def test_another_model_is_refused_by_name_and_shape(
    folder: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.safetensors"
    for name in ("zero2", "dcp"):
        convert(folder / name, target, recipe, "model.num_layers=3", "--trust-pickle", code=2)
        assert "lacks" in (error := capsys.readouterr().err) and "encoder.layers.2" in error
        convert(folder / name, target, recipe, "model.mlp_dim=64", "--trust-pickle", code=2)
        assert "mlp.fc1.weight has shape [48, 24], this model has [64, 24]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_no_pickle_is_read_unless_it_is_trusted(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dcp/.metadata", "ds/step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
        source = file.parent
        convert(source, tmp_path / "a.safetensors", recipe, code=2)
        assert "can run any code" in (error := capsys.readouterr().err) and "--trust-pickle" in error
        with pytest.raises(UsageError, match=rf"checkpoints import {source} .*--trust-pickle"):
            open_source(str(source))
    assert not (tmp_path / "ran").exists()
    convert(tmp_path / "dcp", tmp_path / "a.safetensors", recipe, "--trust-pickle", code=3)
    assert (tmp_path / "ran").exists()  # the canary is one
    convert(tmp_path, tmp_path / "a.safetensors", recipe, "--trust-pickle", code=2)
