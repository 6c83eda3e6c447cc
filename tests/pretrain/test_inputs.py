"""Mixtures of sources, mixed images and several labels, in a training run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jobs import Data, losses, metrics, run, succeed, trace, write_recipe
from pictures import write_pictures

from data_tools.errors import UsageError
from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.inputs import open_inputs


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, smaller set of the same classes."""
    folder = tmp_path_factory.mktemp("second")
    write_pictures(folder / "images", 18, seed=9)
    succeed("data_tools", "pack", folder / "images", folder / "shards")
    return folder / "shards"


def test_two_sources_weighted_3_to_1_are_3_to_1_in_every_batch(
    data: Data, second: Path, tmp_path: Path
) -> None:
    mixture = f"data.train=[{{shards: {data.train}, weight: 3}}, {{shards: {second}}}]"
    config = load(str(write_recipe(tmp_path, data)), [mixture])
    inputs = open_inputs(config)
    split = split_batch(config.train, 1)
    with inputs.train_stream(split, 0, 0, False) as stream:
        for _ in range(20):
            batch = next(stream)
            assert int((batch.sample < 97).sum()) == 9
            assert int((batch.sample >= 97).sum()) == 3


def test_a_mixture_trains_the_same_on_one_and_two_processes(data: Data, second: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    mixture = f"data.train=[{{shards: {data.train}, weight: 3}}, {{shards: {second}, weight: 1}}]"
    outputs = [
        succeed(
            "pretrain",
            recipe,
            f"run.dir={tmp_path}",
            f"run.name=on{n}",
            mixture,
            "train.steps=10",
            processes=n,
        )
        for n in (0, 2)
    ]
    assert trace(tmp_path / "on2") == trace(tmp_path / "on0")
    assert losses(tmp_path / "on2") == pytest.approx(losses(tmp_path / "on0"), abs=1e-6)
    assert f"every batch: 9 of {data.train}, 3 of {second}" in outputs[0]


@pytest.mark.parametrize(
    "entry", ["[3]", "[{weight: 1}]", "[{shards: x, weight: 0}]", "[{shards: x, size: 1}]"]
)
def test_a_source_that_is_none_is_refused(data: Data, tmp_path: Path, entry: str) -> None:
    with pytest.raises(UsageError, match=r"data\.train: .* is not a source"):
        load(str(write_recipe(tmp_path, data)), [f"data.train={entry}"])


def test_mixed_and_augmented_images_are_the_same_on_one_and_two_processes(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    augment = "data.augment.{}={}".format
    settings = (
        augment("mixup", 0.2),
        augment("cutmix", 1.0),
        augment("randaugment_ops", 2),
        augment("erase", 0.25),
        "train.steps=10",
    )
    for n in (0, 2):
        succeed("pretrain", recipe, f"run.dir={tmp_path}", f"run.name=on{n}", *settings, processes=n)
    assert trace(tmp_path / "on2") == trace(tmp_path / "on0")
    assert losses(tmp_path / "on2") == pytest.approx(losses(tmp_path / "on0"), abs=1e-6)


def test_an_odd_micro_batch_cannot_be_mixed(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    settings = (f"run.dir={tmp_path}", "data.augment.mixup=0.2", "train.micro_batch_size=3")
    done = run("pretrain", recipe, *settings)
    assert done.returncode == 2
    assert "train.micro_batch_size=3" in done.stderr


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that have their colour and a second label."""
    folder = tmp_path_factory.mktemp("labels")
    write_pictures(folder / "images", 36, seed=4)
    lines = ["file,label"]
    for path in sorted((folder / "images").rglob("*.png")):
        extra = "|dark" if int(path.stem) % 2 else ""
        lines.append(f"{path.relative_to(folder / 'images')},{path.parent.name}{extra}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    table = ("--csv", folder / "labels.csv", "--label-separator", "|")
    succeed("data_tools", "pack", folder / "images", folder / "shards", *table)
    return folder / "shards"


def test_several_labels_are_learned_by_the_sigmoid_objective(
    several_labels: Path, data: Data, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, Data(several_labels, several_labels, data.images))
    settings = (f"run.dir={tmp_path}", "objective.name=sigmoid", "train.steps=40", "optim.lr=0.01")
    succeed("pretrain", recipe, *settings, processes=2)
    found = losses(tmp_path / "tiny")
    assert found[40] < 0.7 * found[1]
    last = metrics(tmp_path / "tiny")[-1]
    assert last["n"] == 36 and last["top1"] > 0.6


def test_several_labels_are_refused_by_softmax(several_labels: Path, data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, Data(several_labels, several_labels, data.images))
    done = run("pretrain", recipe, f"run.dir={tmp_path}")
    assert done.returncode == 2
    assert "objective.name=sigmoid" in done.stderr and done.stderr.count("\n") == 1


def test_names_that_are_no_utf8_or_in_two_forms_of_unicode_train_to_the_report(
    data: Data, tmp_path: Path
) -> None:
    names = {"train": ["caf\\udce9", "th\u00e9", "日本"], "val": ["caf\\udce9", "the\u0301", "日本"]}
    for split, source in (("train", data.train), ("val", data.val)):
        shutil.copytree(source, tmp_path / split)
        text = json.dumps(names[split], ensure_ascii=False).replace("\\\\", "\\")
        (tmp_path / split / "classes.json").write_text(text, encoding="utf-8")
    recipe = write_recipe(tmp_path, Data(tmp_path / "train", tmp_path / "val", data.images))
    succeed("pretrain", recipe, f"run.dir={tmp_path}", "train.steps=2", "train.eval_every=1")
    run_folder = tmp_path / "tiny"
    wanted = ["caf\\xe9", "th\u00e9", "日本"]
    assert json.loads((run_folder / "classes.json").read_bytes()) == wanted
    assert any(name in (run_folder / "report.html").read_text("utf-8") for name in wanted)
    evaluated = json.loads(succeed("finetune", "evaluate", run_folder, tmp_path / "val"))
    assert evaluated["n"] == metrics(run_folder)[-1]["n"]
    image = next(data.images.rglob("*.png"))
    assert any(name in succeed("finetune", "predict", run_folder, image) for name in wanted)
