"""A run that has lost its checkpoints, that begins again, or that has a checkpoint of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from jobs import Data, losses, metrics, run, status, succeed, write_recipe

from data_tools.errors import UsageError
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.config.schema import Config
from pretrain.run.folder import RunFolder
from pretrain.run.restart import begin, begins_anew


@pytest.fixture(scope="module")
def recipe(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of 6 steps, which is done, beside a second one."""
    recipe = write_recipe(tmp_path_factory.mktemp("restart"), data)
    for name in ("one", "two"):
        succeed("pretrain", *arguments(recipe, name))
    return recipe


def arguments(recipe: Path, name: str, *settings: str) -> tuple[object, ...]:
    return recipe, f"run.dir={recipe.parent}", f"run.name={name}", "train.steps=6", "data.val=", *settings


def test_a_run_that_lost_its_checkpoints_is_refused_until_it_is_told_to_begin_again(recipe: Path) -> None:
    folder = recipe.parent / "one"
    before, old = metrics(folder), status(folder)
    shutil.rmtree(folder / "checkpoints")
    done = run("pretrain", *arguments(recipe, "one"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for part in ("6 steps", "run.resume=restart", "checkpoints"):
        assert part in done.stderr
    assert metrics(folder) == before and status(folder) == old
    assert "before-1" in succeed("pretrain", *arguments(recipe, "one", "run.resume=restart"))
    assert metrics(folder / "before-1") == before and list(losses(folder)) == [*range(1, 7)]
    assert status(folder)["run_id"] != old["run_id"]
    succeed("pretrain", *arguments(recipe, "one", "run.resume=restart"))
    assert complete(folder / "before-2/checkpoints") and not (folder / "before-2/before-1").exists()


def test_a_checkpoint_of_another_run_is_refused_but_may_begin_one(recipe: Path) -> None:
    folder, other = recipe.parent / "two", recipe.parent / "other"
    succeed("pretrain", *arguments(recipe, "other", "train.steps=8"))
    newest = complete(other / "checkpoints")[0]
    assert Checkpoint(newest).state["run_id"] == status(other)["run_id"]
    before = status(folder)
    shutil.copytree(newest, folder / "checkpoints" / newest.name)
    done = run("pretrain", *arguments(recipe, "two", "train.steps=9"))
    assert done.returncode == 2 and "of another run" in done.stderr and done.stderr.count("\n") == 1
    assert status(folder) == before and max(losses(folder)) == 6
    shutil.copytree(newest, recipe.parent / "third/checkpoints" / newest.name)
    assert "resumed from" in succeed("pretrain", *arguments(recipe, "third", "train.steps=9"))
    assert status(recipe.parent / "third")["run_id"] == status(other)["run_id"]


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_a_run_whose_status_is_lost_goes_on_under_the_id_of_its_checkpoint(
    recipe: Path, text: str | None
) -> None:
    source, folder = recipe.parent / "two", recipe.parent / f"torn-{text}".replace("[]", "list")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("step-00000008", "status.json"))
    if text is not None:
        (folder / "status.json").write_text(text, encoding="utf-8")
    succeed("pretrain", *arguments(recipe, folder.name))
    assert status(folder)["run_id"] == status(source)["run_id"] and list(losses(folder)) == [*range(1, 7)]


def test_a_run_that_never_had_a_checkpoint_begins_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = RunFolder(tmp_path), Config()
    config.run.resume = "restart"
    folder.create()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert begins_anew(config, folder)
    folder.set_status("starting", anew=True, job="7", run_id="a", step=10)
    assert not begins_anew(config, folder), "else each life would begin again"
    begin(folder, anew=False)
    assert folder.status() == {} and (tmp_path / "before-1/status.json").exists()
    (folder.checkpoints / "latest").write_text("step-00000010\n")
    folder.set_status("starting", anew=True, job="7", run_id="b", step=11)
    (folder.checkpoints / "latest").unlink()
    folder.set_status("running", step=12)
    with pytest.raises(UsageError, match="12 steps"):
        begin(folder, anew=False)
