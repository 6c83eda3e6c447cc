"""Evaluation, prediction and export of a trained run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import facts_of, rewrite, write_weights
from jobs import Data, metrics, run, succeed, write_recipe

from data_tools.errors import DataError
from finetune import open_run
from finetune.export import export_folder
from pretrain.checkpoints.facts import distinct_names
from pretrain.model.inspection import inspect


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that can tell the colours apart."""
    root = tmp_path_factory.mktemp("trained")
    recipe = write_recipe(root, data)
    succeed("pretrain", recipe, f"run.dir={root}", "train.steps=60", "optim.lr=0.01")
    return root / "tiny"


def test_evaluation_of_21_images_is_the_same_on_1_2_and_4_processes(trained: Path, data: Data) -> None:
    found = []
    for processes in (0, 1, 2, 4):
        output = succeed("finetune", "evaluate", trained, data.val, "--batch-size", 4, processes=processes)
        found.append(json.loads(output))
    assert found[0]["n"] == 21
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-12)
        assert (other["n"], other["top1"]) == (found[0]["n"], found[0]["top1"])
    assert found[0]["top1"] * 21 == pytest.approx(round(found[0]["top1"] * 21))


def test_it_agrees_with_the_evaluation_of_the_training_run(trained: Path, data: Data) -> None:
    last = metrics(trained)[-1]
    found = json.loads(succeed("finetune", "evaluate", trained, data.val))
    assert last["n"] == found["n"] == 21
    assert (last["top1"], last["loss"]) == pytest.approx((found["top1"], found["loss"]), abs=1e-6)


def test_an_export_gives_the_same_predictions(trained: Path, data: Data, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    succeed("finetune", "export", trained, target, "--format", "safetensors")
    images = sorted(data.images.rglob("*.png"))[:3]
    wanted = succeed("finetune", "predict", trained, *images, "--json")
    assert succeed("finetune", "predict", target, *images, "--json") == wanted
    rows = [json.loads(line) for line in wanted.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in images]
    assert all(sum(row["classes"].values()) == pytest.approx(1.0) for row in rows)


def test_predictions_name_the_classes(trained: Path, data: Data) -> None:
    images = sorted(data.images.rglob("*.png"))
    output = succeed("finetune", "predict", trained, *images, "--topk", 1)
    guesses = [line.split(": ")[1].split()[0] for line in output.splitlines()]
    assert len(guesses) == 21
    right = sum(guess == path.parent.name for guess, path in zip(guesses, images, strict=True))
    assert right / 21 == pytest.approx(metrics(trained)[-1]["top1"])
    assert right >= 15


def test_an_unreadable_image_ends_in_exit_3_after_the_others(
    trained: Path, data: Data, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    good = sorted(data.images.rglob("*.png"))[0]
    done = run("finetune", "predict", trained, tmp_path / "broken.jpg", good, tmp_path / "none.png")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1 and str(good) in done.stdout
    errors = done.stderr.splitlines()
    assert len(errors) == 2 and "broken.jpg" in errors[0] and "none.png" in errors[1]


def test_a_run_opened_in_python_predicts_what_the_command_prints(trained: Path, data: Data) -> None:
    images = sorted(data.images.rglob("*.png"))[:3]
    printed = succeed("finetune", "predict", trained, *images, "--json").splitlines()
    opened = open_run(trained, device="cpu")
    assert opened.classes == json.loads((trained / "classes.json").read_text())
    assert (opened.preprocessing.tile_size, opened.preprocessing.max_tiles) == (16, 4)
    assert opened.model(torch.zeros(2, 3, 16, 16)).shape == (2, len(opened.classes))
    found = opened.predict(images)
    assert found == opened.predict([path.read_bytes() for path in images])
    for line, prediction in zip(printed, found, strict=True):
        expected = json.loads(line)["classes"]
        assert dict(prediction.classes) == pytest.approx(expected, abs=1e-6)
        assert [name for name, _ in prediction.classes] == list(expected)
        assert prediction.best == next(iter(expected))


@pytest.mark.parametrize("name", ["broken.jpg", "none.png"])
def test_a_run_opened_in_python_names_an_unreadable_image(trained: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=name):
        open_run(trained, device="cpu").predict([tmp_path / name])


def test_other_classes_are_refused(trained: Path, data: Data, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in data.val.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "classes.json").write_text('["blue", "green", "purple"]')
    done = run("finetune", "evaluate", trained, other)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert "classes.json has changed" in warning and error.startswith("error:")


def test_a_run_that_is_not_there(data: Data) -> None:
    done = run("finetune", "evaluate", "/no/such/run", data.val)
    assert done.returncode == 2
    assert "/no/such/run" in done.stderr and done.stderr.count("\n") == 1


def test_the_report_needs_no_network(trained: Path) -> None:
    page = (trained / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 5
    assert page.count('<img alt="" src="data:image/png;base64,') == 12
    assert page.count('<img alt="attention" src="data:image/png;base64,') == 12


@pytest.mark.parametrize("classes", [("crane", "crane", "red"), ("crane", "crane", "crane (0)")])
def test_classes_with_equal_names_stay_apart(classes: tuple[str, ...], data: Data, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "small.safetensors", classes=classes)
    image = next(data.images.rglob("*.png"))
    found = json.loads(succeed("finetune", "predict", file, image, "--json"))["classes"]
    assert sum(found.values()) == pytest.approx(1.0) and len(found) == 3
    assert {"crane (1)", classes[2]} < found.keys()
    export_folder(str(file), str(tmp_path / "hf"), "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert sorted(config["label2id"].values()) == [0, 1, 2]
    assert list(config["id2label"].values()) == list(classes)
    assert open_run(tmp_path / "hf").classes == list(classes)


def test_names_of_a_stranger_cannot_write_to_the_terminal(data: Data, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "small.safetensors", classes=("a\x1b[2J", "b\nerror: forged", "c"))
    output = succeed("finetune", "predict", file, next(data.images.rglob("*.png")))
    assert r"a\x1b[2J" in output and r"b\nerror: forged" in output
    assert "\x1b" not in output and "\nerror: forged" not in output


def test_more_outputs_than_names_are_called_by_their_numbers() -> None:
    assert distinct_names(["a", "a", "2"], 4) == ["a (0)", "a (1)", "2", "3"]
    assert distinct_names(["2"], 3) == ["2", "1", "2 (2)"]
    assert distinct_names(None, 2) == ["0", "1"]


@pytest.mark.parametrize("program", ["hf", "timm"])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "regression"])
def test_an_export_still_knows_its_objective(
    program: str, objective: str, data: Data, tmp_path: Path
) -> None:
    file = write_weights(tmp_path / "small.safetensors", objective=objective)
    export_folder(str(file), str(tmp_path / "theirs"), program)
    image = next(data.images.rglob("*.png"))
    wanted, found = (open_run(path).predict([image]) for path in (file, tmp_path / "theirs"))
    assert found == wanted
    assert open_run(tmp_path / "theirs").source.notes == ()


def test_who_does_not_say_an_objective_is_taken_for_softmax_and_that_is_said(tmp_path: Path) -> None:
    export_folder(str(write_weights(tmp_path / "small.safetensors")), str(tmp_path / "timm"), "timm")
    config = json.loads((tmp_path / "timm/config.json").read_text())
    del config["objective"]
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    assert any("softmax" in note for note in open_run(tmp_path / "timm").source.notes)


def test_outputs_that_are_no_numbers_are_an_error(data: Data, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "small.safetensors")
    rewrite(file, facts_of(), **{"head.weight": torch.full((3, 24), 1e38)})
    done = run("finetune", "predict", file, next(data.images.rglob("*.png")), "--json")
    assert done.returncode == 3 and done.stdout == ""
    assert "no finite numbers" in done.stderr and done.stderr.count("\n") == 1


def test_what_cannot_be_predicted_is_refused_at_once(trained: Path, data: Data) -> None:
    image = next(data.images.rglob("*.*"))
    for arguments, says in (
        ((image, "--topk=0"), "--topk 0"),
        ((image, "--topk=-1"), "--topk -1"),
        ((data.images,), "*.jpg"),
    ):
        done = run("finetune", "predict", trained, *arguments)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_features_are_the_models_own(trained: Path, data: Data) -> None:
    run = open_run(trained, device="cpu")
    images = sorted(data.images.rglob("*.png"))[:3]
    batches = [run.transform(image) for image in images]
    with torch.no_grad():
        seen = [inspect(run.model, batch) for batch in batches]
        logits = run.model.head(run.embed(images))
    torch.testing.assert_close(logits, torch.cat([one.logits for one in seen]))
    for layer in (0, 1, 2, -1):
        wanted = torch.stack([one.hidden_states[layer][:, 0].mean(0) for one in seen])
        torch.testing.assert_close(run.embed(images, layer=layer), wanted)
    with pytest.raises(ValueError, match="layer must be -3 to 2"):
        run.embed(images, layer=3)
    assert run.embed([]).shape == (0, 24)


def test_embed_writes_the_features_of_images_and_of_shards(trained: Path, data: Data, tmp_path: Path) -> None:
    images = sorted(data.images.rglob("*.png"))
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    done = run(
        "finetune", "embed", trained, *images, tmp_path / "broken.jpg", tmp_path / "a.npz", "--layer", -1
    )
    assert done.returncode == 3 and "broken.jpg" in done.stderr
    succeed("finetune", "embed", trained, data.val, tmp_path / "b.npz", "--layer", 2, "--batch-size", 4)
    with np.load(tmp_path / "a.npz") as alone, np.load(tmp_path / "b.npz") as packed:
        assert alone["names"].tolist() == list(map(str, images))
        apart = np.abs(alone["features"][:, None] - packed["features"]).max(-1)
        places = apart.argmin(1)
        assert sorted(places) == list(range(len(images))) and apart.min(1).max() < 1e-5
        classes = open_run(trained).classes
        assert [classes[label] for label in packed["labels"][places]] == [path.parent.name for path in images]
        assert packed["names"][0].startswith("shard-") and packed["names"][0].endswith(".tar/000000000")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{image}", "{there}"), 2, "new file"),
        (("{image}", "{tmp}/a.npy"), 2, "end in .npz"),
        (("{image}", "{tmp}/no/a.npz"), 2, "a folder that exists"),
        (("{image}", "{tmp}/a.npz", "--layer", "3"), 2, "blocks 1 to 2"),
        (("{tmp}/none", "{tmp}/a.npz"), 2, "none"),
        (("{there}", "{tmp}/a.npz"), 3, "none of the images could be read"),
    ],
)
def test_what_cannot_be_embedded_leaves_no_file(
    arguments: tuple[str, ...], code: int, says: str, trained: Path, data: Data, tmp_path: Path
) -> None:
    (there := tmp_path / "there.npz").touch()
    known = {"image": next(data.images.rglob("*.png")), "tmp": tmp_path, "there": there}
    done = run("finetune", "embed", trained, *(text.format(**known) for text in arguments))
    assert done.returncode == code and says in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [there]
