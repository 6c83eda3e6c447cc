"""A user's mistake: one clear sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT, Data, losses, metrics, rows, run, succeed, write_recipe


@pytest.fixture
def recipe(data: Data, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, data)


def refuse(recipe: Path, *settings: str, code: int, says: tuple[str, ...], processes: int = 0) -> None:
    """The command ends with `code` and one line on stderr with all of `says`, and leaves no run folder."""
    done = run("pretrain", recipe, f"run.dir={recipe.parent}/runs", *settings, processes=processes)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    for text in says:
        assert text in lines[0]
    assert done.returncode == (1 if processes else code)  # torchrun's own
    assert done.stderr == lines[0] + "\n"
    assert not (recipe.parent / "runs").exists()


def test_missing_shards(recipe: Path) -> None:
    refuse(recipe, "data.train=/no/such/place", code=2, says=("/no/such/place", "data_tools pack"))


def test_an_empty_folder(recipe: Path) -> None:
    (recipe.parent / "empty").mkdir()
    refuse(recipe, f"data.val={recipe.parent}/empty", code=2, says=(f"{recipe.parent}/empty", "pack"))


def test_a_missing_shard(recipe: Path, data: Data) -> None:
    broken = recipe.parent / "broken"
    broken.mkdir()
    for file in data.train.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    shard = sorted(broken.glob("*.tar"))[1]
    shard.unlink()
    refuse(recipe, f"data.train={broken}", code=3, says=(str(shard), "missing"))


def test_a_shard_written_anew_after_indexing(recipe: Path, data: Data) -> None:
    stale = recipe.parent / "stale"
    shutil.copytree(data.train, stale)
    shard = sorted(stale.glob("*.tar"))[1]
    content = shard.read_bytes()
    position = content.index(b'"label": ') + len('"label": ')
    shard.write_bytes(
        content[:position] + (b"1" if content[position] != b"1"[0] else b"2") + content[position + 1 :]
    )
    refuse(
        recipe, f"data.train={stale}", code=3, says=(str(shard), "not what was indexed", "data_tools index")
    )


def test_an_unknown_key(recipe: Path) -> None:
    refuse(recipe, "optim.lrr=1", code=2, says=("optim.lrr", "did you mean optim.lr?"))


def test_an_unknown_key_is_answered_without_importing_torch(recipe: Path) -> None:
    code = (
        "import sys\nfrom pretrain.config.loading import load\nfrom data_tools.errors import UsageError\n"
        "try:\n    load(sys.argv[1], ['optim.lrr=1'])\n"
        "except UsageError:\n    sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, recipe], cwd=ROOT).returncode == 0


def test_an_unknown_key_in_the_recipe(recipe: Path) -> None:
    recipe.write_text(recipe.read_text(encoding="utf-8") + "optimm: {lr: 1}\n", encoding="utf-8")
    refuse(recipe, code=2, says=(str(recipe), "optimm.lr", "did you mean optim.lr?"))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.steps=many", "train.steps"),
        ("engine.kind=ddpp", "did you mean ddp?"),
        ("train.log_every=0", "train.log_every"),
        ("model.name=vit_x16", "vit_"),
        ("data.tile_size=18", "data.tile_size"),
        ("model.num_classes=2", "model.num_classes=2"),
        ("data.augment.crop_scale=[0.5,2]", "data.augment.crop_scale"),
    ],
)
def test_a_value_that_cannot_be(recipe: Path, setting: str, says: str) -> None:
    refuse(recipe, setting, code=2, says=(says,))


def test_a_recipe_that_is_not_there(recipe: Path) -> None:
    refuse(recipe.with_name("none.yaml"), code=2, says=("none.yaml",))


def test_a_batch_that_does_not_divide_names_the_nearest_sizes(recipe: Path) -> None:
    says = ("train.batch_size=13", "12 or 14")
    refuse(recipe, "train.batch_size=13", "data.lanes=1", code=2, says=says, processes=2)


def test_a_micro_batch_that_does_not_divide(recipe: Path) -> None:
    refuse(recipe, "train.micro_batch_size=5", code=2, says=("train.micro_batch_size=5", "4 or 6"))


def spoil(data: Data, folder: Path, number: int) -> Path:
    """A packed copy of the training pictures in which `number` of them are cut short."""
    pictures = data.images.parent / "train"
    for position, file in enumerate(sorted(pictures.rglob("*.png"))):
        target = folder / "images" / file.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        target.write_bytes(content[: len(content) // 2] if position < number else content)
    assert run("data_tools", "pack", folder / "images", folder / "shards").returncode == 0
    return folder / "shards"


def test_an_unreadable_image_among_good_ones_is_replaced_and_counted(data: Data, tmp_path: Path) -> None:
    shards = spoil(data, tmp_path, 1)
    recipe = write_recipe(tmp_path, Data(shards, data.val, data.images))
    succeed("pretrain", recipe, f"run.dir={tmp_path}", "train.steps=18", processes=2)
    noted = rows(tmp_path / "tiny/bad_samples.jsonl")
    assert len(noted) == 1
    assert noted[0]["shard"].endswith(".tar") and noted[0]["reason"]
    assert [row for row in metrics(tmp_path / "tiny") if "split" not in row][-1]["bad_samples"] == 1
    assert len(losses(tmp_path / "tiny")) == 18


def test_too_many_unreadable_images_end_in_exit_3(data: Data, tmp_path: Path) -> None:
    shards = spoil(data, tmp_path, 9)
    recipe = write_recipe(tmp_path, Data(shards, data.val, data.images))
    done = run("pretrain", recipe, f"run.dir={tmp_path}")
    assert done.returncode == 3
    assert "data.max_bad_fraction" in done.stderr


def test_a_loss_that_is_not_a_number_ends_in_exit_4(recipe: Path) -> None:
    done = run("pretrain", recipe, f"run.dir={recipe.parent}", "optim.lr=1000", "optim.weight_decay=1000")
    assert done.returncode == 4
    assert "the loss is" in done.stderr
    assert not list((recipe.parent / "tiny/checkpoints").glob("step-*"))
