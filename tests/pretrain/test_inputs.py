"""Mixtures of sources, mixed images and several labels, in a training run."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import Data, losses, metrics, run, succeed, trace, write_recipe
from pictures import write_pictures
from sample_files import picture, write_tar

from data_tools.__main__ import main as data_tools_main
from data_tools.errors import UsageError
from data_tools.shards.indexing import index_shards
from data_tools.shards.shard_set import ShardSet
from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.inputs import open_inputs
from pretrain.resume import _check_order as check_order


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
    "entry", ["[[3]]", "[{weight: 1}]", "[{shards: x, weight: 0}]", "[{shards: x, size: 1}]"]
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


def split_in_one_folder(folder: Path, train: Path, val: Path) -> Path:
    """The shards of both sets in one folder, as on the hub, each with an index of its own."""
    for name, source in (("train", train), ("val", val)):
        for shard in source.glob("*.tar"):
            shutil.copy(shard, folder / shard.name.replace("shard", name))
    shutil.copy(train / "classes.json", folder)
    for name in ("train", "val"):
        index_shards([f"{folder}/{name}-*.tar"], None)
    return folder


def test_training_and_validation_shards_lie_in_one_folder(data: Data, tmp_path: Path) -> None:
    folder = split_in_one_folder(tmp_path, data.train, data.val)
    recipe = str(write_recipe(tmp_path, data))
    count = len(list(folder.glob("val-*.tar")))
    last = f"{len(list(folder.glob('train-*.tar'))) - 1:06d}"
    for train, val in (
        (f"{folder}/train-{{000000..{last}}}.tar", f"{folder}/val-*.tar"),
        (f"[{folder}/train-*.tar]", f"[{', '.join(f'{folder}/val-{n:06d}.tar' for n in range(count))}]"),
        (f"[{{shards: {folder}/train-*.tar}}]", f"{folder}/val-*.tar"),
        (f"[{{shards: [{folder}/train-*.tar], weight: 2}}]", f"{folder}/val-*.tar"),
    ):
        inputs = open_inputs(load(recipe, [f"data.train={train}", f"data.val={val}"]))
        assert inputs.train.num_samples == 97 and inputs.val is not None and len(inputs.val) == 21
        assert inputs.notes() == []
    for text in ("*.tar", "{train,val}-*.tar", "*/it's.tar"):
        assert load(recipe, [f"data.train={text}"]).data.train == text
    with pytest.raises(UsageError, match=r"data\.val: "):
        load(recipe, ["data.val=[{shards: x}]"])
    with pytest.raises(UsageError, match=r"no-\*\.tar matches no file"):
        open_inputs(load(recipe, [f"data.train={folder}/no-*.tar"]))


def test_a_job_trains_and_evaluates_on_patterns(data: Data, tmp_path: Path) -> None:
    folder = split_in_one_folder(tmp_path, data.train, data.val)
    (folder / "train-000009.tar.part").write_bytes(b"x")
    settings = (f"data.train={folder}/train-*.tar", f"data.val={folder}/val-*.tar", "train.steps=2")
    succeed("pretrain", write_recipe(tmp_path, data), f"run.dir={tmp_path}", "run.name=run", *settings)
    row = json.loads(succeed("finetune", "evaluate", tmp_path / "run", f"{folder}/val-*.tar"))
    last = [row for row in metrics(tmp_path / "run") if "top1" in row][-1]
    assert row["top1"] == last["top1"]


def test_the_identity_that_version_0_1_saved_still_resumes(data: Data, tmp_path: Path) -> None:
    """It was the sha256 of the index file, which held the queries of URLs."""
    inputs = open_inputs(load(str(write_recipe(tmp_path, data)), []))
    order = inputs.order_constants()

    @dataclass
    class Saved:
        state: dict[str, Any]
        path: Path = tmp_path
        step: int = 5

    object.__setattr__(inputs.train.sources[0], "file_sha256", "that of the file")
    check_order(Saved({"order": order}), inputs, False)
    check_order(Saved({"order": order | {"index_sha256": "that of the file"}}), inputs, False)
    with pytest.raises(UsageError, match="another order of images"):
        check_order(Saved({"order": order | {"index_sha256": "another"}}), inputs, False)


def advised(error: UsageError) -> list[str]:
    """The command of data_tools in a message."""
    return shlex.split(str(error).partition("python -m data_tools ")[2])


@pytest.mark.parametrize("made_by", ["index", "pack"])
@pytest.mark.parametrize("role", ["val", "second source"])
def test_a_second_set_with_fewer_classes_gets_those_of_the_first_as_the_message_says(
    made_by: str, role: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, labels in (("train", ["ant", "bee", "cow"]), ("second", ["bee", "cow"])):
        Path(name).mkdir()
        members = [
            (f"{n}.{kind}", content)
            for n in range(12)
            for kind, content in (("jpg", picture(n)), ("cls", labels[n % len(labels)].encode()))
        ]
        write_tar(Path(name) / "x.tar", members)
        if made_by == "pack":
            Path(name).rename(f"{name}-shards")
            assert data_tools_main(["pack", f"{name}-shards", name]) == 0
        else:
            assert data_tools_main(["index", name]) == 0
    recipe = str(write_recipe(tmp_path, data))

    def given(second: str) -> list[str]:
        if role == "val":
            return ["data.train=train", f"data.val={second}"]
        return [f"data.train=[{{shards: train}}, {{shards: {second}}}]", "data.val=train"]

    with pytest.raises(UsageError, match=r"label 0 is 'bee' there and 'ant' in train") as error:
        open_inputs(load(recipe, given("second")))
    command = advised(error.value)
    assert command[:2] == [made_by, "second"] and command[-2:] == ["--classes", "train"]
    assert data_tools_main(command) == 0
    second = "NEW" if "NEW" in command else "second"
    inputs = open_inputs(load(recipe, given(second)))
    assert inputs.num_classes == 3 and inputs.classes == ["ant", "bee", "cow"]
    assert set(ShardSet.open(second).labels(range(12)).tolist()) == {1, 2}
