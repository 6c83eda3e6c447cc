"""Regression and masked patches from the command line to the fine-tuned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jobs import Data, losses, metrics, run, status, succeed, write_recipe
from PIL import Image

from data_tools.packing.pack import pack
from data_tools.shards.labels import LabelRules
from data_tools.tile_batch import TileBatch
from finetune.adapt import adapt
from finetune.source import open_source
from pretrain.config.schema import Config, ObjectiveConfig
from pretrain.model.build import build_model
from pretrain.objective import build_measure, build_objective, probabilities

MASKED = ("objective.name=masked_patches", "optim.schedule=constant", "model.pool=map")


@pytest.fixture(scope="module")
def masked(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of eight steps: `whole` by one process, `moved` under DDP, resumed under ZeRO-3."""
    folder = tmp_path_factory.mktemp("masked")
    arguments = [write_recipe(folder, data), f"run.dir={folder}", *MASKED]
    succeed("pretrain", *arguments, "run.name=whole", "train.steps=8", "engine.kind=fsdp")
    moved = [*arguments, "run.name=moved", "train.micro_batch_size=3", "data.val="]
    succeed("pretrain", *moved, "train.steps=4", processes=2)
    zero = ["train.steps=8", "engine.kind=deepspeed", "engine.zero_stage=3", f"data.val={data.val}"]
    succeed("pretrain", *moved, *zero, processes=2)
    return folder


def test_masked_patches_have_one_loss_under_every_engine_and_after_a_resume(masked: Path) -> None:
    wanted = losses(masked / "whole")
    assert wanted[1] == pytest.approx(torch.tensor(512.0).log().item(), abs=1e-4)
    assert wanted[8] < wanted[1] - 0.1
    assert losses(masked / "moved") == pytest.approx(wanted, abs=2e-6)
    whole, moved = (metrics(masked / name)[-1] for name in ("whole", "moved"))
    assert whole["split"] == "val" and whole["n"] == 21 and 0 <= whole["colours"] <= 1
    assert moved == pytest.approx(whole, abs=1e-5)
    assert status(masked / "moved")["state"] == "done"
    assert "of the colours" in (masked / "whole" / "report.html").read_text()


def test_fine_tuning_starts_from_masked_patches(masked: Path) -> None:
    source = open_source(str(masked / "whole"))
    config = Config(data=source.data)
    config.model = source.build().config
    with torch.device("meta"):
        model = build_model(config, 3)
    adaptation = adapt(source, model, "bilinear")
    first = adaptation.initial_value(model, 0)
    assert {name.partition(".")[0] for name, how in adaptation.origin.items() if how == "initialised"} == {
        "head",
        "pool",
    }
    name = "encoder.layers.1.attn.qkv.weight"
    assert torch.equal(first(name, model.get_parameter(name).shape), source.read(name))
    done = run("finetune", "predict", masked / "whole", "any.png")
    assert done.returncode == 2 and "fine-tune it first" in done.stderr


def test_brightness_is_learned_as_a_number(tmp_path: Path) -> None:
    images, rows = tmp_path / "images", ["file,label"]
    images.mkdir()
    for number in range(48):
        Image.new("RGB", (16, 16), (5 * number,) * 3).save(images / f"{number}.png")
        rows.append(f"{number}.png,{number / 24 - 1:.4f}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    pack(images, tmp_path / "shards", csv=tmp_path / "labels.csv", rules=LabelRules(numbers=True))
    shards = tmp_path / "shards"
    recipe = write_recipe(tmp_path, Data(shards, shards, images))
    settings = [
        recipe,
        f"run.dir={tmp_path}",
        "data.max_tiles=1",
        "train.steps=60",
        "data.augment.flip=false",
    ]
    succeed("pretrain", *settings, "objective.name=regression", "optim.lr=1e-2")
    last = metrics(tmp_path / "tiny")[-1]
    assert last["mae"] < 0.15 and last["loss"] < 0.03
    assert "top1" not in last
    said = succeed("finetune", "predict", tmp_path / "tiny", images / "36.png", "--json")
    assert json.loads(said)["numbers"] == [pytest.approx(0.5, abs=0.3)]
    refused = run("pretrain", *settings, "run.name=classes")
    assert refused.returncode == 2 and "objective.name=regression predicts" in refused.stderr


def batch(labels: torch.Tensor) -> TileBatch:
    rows = torch.ones(len(labels), 2, dtype=torch.int64)
    numbers = torch.arange(len(labels))
    weight = torch.tensor([1.0, 0.0])
    return TileBatch(torch.zeros(len(labels), 3, 4, 4), rows[:, 0], rows, labels, weight, numbers, numbers)


@pytest.mark.parametrize("labels", [torch.tensor([3, 1]), torch.tensor([[3.0], [1.0]])])
def test_regression_is_the_mean_squared_error_of_numbers_and_of_classes_that_count(
    labels: torch.Tensor,
) -> None:
    outputs = torch.tensor([[2.5], [0.0]])
    loss = build_objective(ObjectiveConfig(name="regression"))(outputs, batch(labels))
    assert loss.tolist() == [0.25, 0.0]  # the second image only fills the batch
    found = build_measure("regression")(outputs, batch(labels))
    assert found["loss"].tolist() == [0.25, 1.0]
    assert found["mae"].tolist() == [0.5, 1.0]


def test_several_numbers_are_averaged() -> None:
    labels = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    loss = build_objective(ObjectiveConfig(name="regression"))(torch.ones(2, 2), batch(labels))
    assert loss.tolist() == [1.0, 0.0]


def test_what_is_shown_and_measured_is_the_objectives() -> None:
    outputs = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    assert torch.equal(probabilities(outputs, "softmax"), outputs.softmax(-1))
    assert torch.equal(probabilities(outputs, "sigmoid"), outputs.sigmoid())
    for other in ("regression", "masked_patches"):
        assert torch.equal(probabilities(outputs, other), outputs)
    one, several = torch.tensor([1, 2]), torch.tensor([[0, 1], [-1, -1]])
    for labels in (one, several):
        loss = build_objective(ObjectiveConfig(name="sigmoid"))(outputs, batch(labels))
        assert build_measure("sigmoid")(outputs, batch(labels))["loss"][0] == loss[0]
    cross_entropy = torch.nn.functional.cross_entropy(outputs, one, reduction="none")
    assert torch.equal(build_measure("softmax")(outputs, batch(one))["loss"], cross_entropy)
    found = build_measure("softmax")(outputs, batch(several))["loss"]
    assert found[0].item() == pytest.approx(-outputs[0].softmax(-1)[:2].sum().log().item(), abs=1e-6)
    assert found[1].item() == 0.0


def test_a_sigmoid_model_is_shown_by_the_probability_of_each_class(data: Data, tmp_path: Path) -> None:
    """At the start its outputs are 0, which is one half for each class and one third under a softmax."""
    settings = (f"run.dir={tmp_path}", "objective.name=sigmoid", "train.steps=1", "optim.lr=1e-12")
    succeed("pretrain", write_recipe(tmp_path, data), *settings)
    page = (tmp_path / "tiny/report.html").read_text()
    assert page.count(" 50%") == 12 and "33%" not in page
    row = metrics(tmp_path / "tiny")[-1]
    assert row["loss"] == pytest.approx(3 * torch.tensor(2.0).log().item(), abs=1e-5)
    image = next(data.images.rglob("*.png"))
    said = json.loads(succeed("finetune", "predict", tmp_path / "tiny", image, "--json"))
    assert list(said["classes"].values()) == [pytest.approx(0.5, abs=1e-5)] * 3
