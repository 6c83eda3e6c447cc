"""Nothing is lost: kill -9, SIGTERM, another number of processes, damaged checkpoints."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from jobs import (
    TIMEOUT,
    Data,
    Job,
    WarmJob,
    losses,
    metrics,
    rows,
    run,
    status,
    succeed,
    trace,
    write_recipe,
)

from data_tools.errors import UsageError
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.config.batch_split import BatchSplit
from pretrain.config.loading import load
from pretrain.resume import check_model, warn_of_other_noise

STEPS = 30


@pytest.fixture(scope="module")
def recipe(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("resume"), data)


def arguments(recipe: Path, name: str, *settings: str) -> tuple[object, ...]:
    return (
        recipe,
        f"run.dir={recipe.parent}",
        f"run.name={name}",
        f"train.steps={STEPS}",
        *settings,
    )


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path) -> Path:
    succeed("pretrain", *arguments(recipe, "whole", "engine.kind=fsdp"), processes=2)
    return recipe.parent / "whole"


@pytest.fixture(scope="module")
def killed(recipe: Path, uninterrupted: Path) -> Path:
    """The folder of the same run after kill -9 at a random step."""
    folder = recipe.parent / "killed"
    job = WarmJob(folder, "pretrain", *arguments(recipe, "killed", "engine.kind=fsdp"), processes=2)
    job.wait_for_step(random.randint(7, 23))
    job.kill()
    return folder


def same_weights(a: Path, b: Path) -> None:
    first, second = (
        Checkpoint(complete(a / "checkpoints")[0]),
        Checkpoint(complete(b / "checkpoints")[0]),
    )
    assert first.step == second.step
    assert first.tensors == second.tensors
    for key in first.tensors:
        assert torch.equal(first.whole(key), second.whole(key)), key


def continued(killed: Path, name: str) -> str:
    """A copy of the killed run, to be continued as `name`."""
    shutil.copytree(killed, killed.parent / name)
    return name


def test_killed_and_continued_equals_uninterrupted(recipe: Path, uninterrupted: Path, killed: Path) -> None:
    assert status(killed)["state"] == "running"
    name = continued(killed, "again")
    output = succeed("pretrain", *arguments(recipe, name, "engine.kind=fsdp"), processes=2)
    assert "resumed from" in output
    folder = recipe.parent / name
    assert trace(folder) == trace(uninterrupted)
    assert losses(folder) == losses(uninterrupted)
    same_weights(folder, uninterrupted)
    assert [row["step"] for row in metrics(folder)] == [row["step"] for row in metrics(uninterrupted)]
    assert status(folder)["state"] == "done"
    assert (folder / "checkpoints/latest").read_text() == f"step-{STEPS:08d}\n"


@pytest.mark.parametrize(("engine", "processes"), [("ddp", 3), ("ddp", 0), ("fsdp", 4)])
def test_continued_at_another_size_under_another_engine(
    recipe: Path, uninterrupted: Path, killed: Path, engine: str, processes: int
) -> None:
    name = continued(killed, f"{engine}_{processes}")
    succeed("pretrain", *arguments(recipe, name, f"engine.kind={engine}"), processes=processes)
    folder = recipe.parent / name
    assert trace(folder) == trace(uninterrupted)
    assert losses(folder) == pytest.approx(losses(uninterrupted), abs=1e-5)


@pytest.mark.parametrize(("number", "start"), [(signal.SIGTERM, WarmJob), (signal.SIGUSR1, Job)])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    recipe: Path, uninterrupted: Path, number: signal.Signals, start: type[Job]
) -> None:
    folder = recipe.parent / number.name
    call = arguments(recipe, number.name, "engine.kind=fsdp")
    job = start(folder, "pretrain", *call, processes=2)
    job.wait_for_step(9)
    os.kill(job.workers()[1], number)
    _, output = job.finish()
    stopped = status(folder)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75), output
    assert complete(folder / "checkpoints")[0].name == f"step-{stopped['step']:08d}"
    assert max(losses(folder)) == stopped["step"] < STEPS
    succeed("pretrain", *call, processes=2)
    assert losses(folder) == losses(uninterrupted)
    same_weights(folder, uninterrupted)


def test_a_single_process_exits_with_75(recipe: Path) -> None:
    folder = recipe.parent / "alone"
    job = WarmJob(folder, "pretrain", *arguments(recipe, "alone"))
    job.wait_for_step(3)
    os.kill(job.process.pid, signal.SIGTERM)
    code, output = job.finish()
    assert code == 75, output
    assert "stopped by SIGTERM" in output


def test_a_signal_before_the_first_step_saves_and_stops(recipe: Path) -> None:
    folder = recipe.parent / "early"
    job = Job(folder, "pretrain", *arguments(recipe, "early"))
    job.wait_until(lambda: (folder / "status.json").exists())
    os.kill(job.process.pid, signal.SIGTERM)
    code, output = job.finish()
    assert code == 75, output
    assert complete(folder / "checkpoints")[0].name == f"step-{status(folder)['step']:08d}"
    assert status(folder)["step"] <= 1


def test_a_second_ctrl_c_ends_a_start_at_once_and_without_a_traceback(recipe: Path) -> None:
    job = Job(recipe.parent / "twice", "pretrain", *arguments(recipe, "twice"))
    process = Path(f"/proc/{job.process.pid}/status")
    job.wait_until(lambda: catches_usr1(process))
    while job.process.poll() is None:
        job.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    code, output = job.finish()
    assert code == 1 and "Traceback" not in output, output


def catches_usr1(process: Path) -> bool:
    """Whether a process, given as /proc/PID/status, has a handler of its own for SIGUSR1."""
    caught = int(process.read_text(encoding="utf-8").partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (signal.SIGUSR1 - 1))


def test_workers_whose_torchrun_was_killed_save_and_end(recipe: Path, uninterrupted: Path) -> None:
    folder = recipe.parent / "orphans"
    call = arguments(recipe, "orphans", "engine.kind=fsdp")
    job = Job(folder, "pretrain", *call, processes=2)
    job.wait_for_step(5)
    workers = job.workers()
    os.kill(job.process.pid, signal.SIGKILL)
    limit = time.monotonic() + TIMEOUT
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "the workers went on"
        time.sleep(0.05)
    assert status(folder)["state"] == "stopped"
    succeed("pretrain", *call, processes=2)
    assert losses(folder) == losses(uninterrupted)


def test_a_finished_run_says_so_and_goes_on_when_asked_for_more(recipe: Path, uninterrupted: Path) -> None:
    name = continued(uninterrupted, "longer")
    kept = {file: file.read_bytes() for file in (recipe.parent / name).glob("[!.]*.*") if file.is_file()}
    output = succeed("pretrain", *arguments(recipe, name))
    assert "is finished: step 30 of 30" in output
    assert {file: file.read_bytes() for file in kept} == kept
    output = succeed("pretrain", *arguments(recipe, name), "train.steps=32", "optim.lr=1e-3")
    assert "changed since the last start: optim.lr 0.003 → 0.001" in output
    assert max(losses(recipe.parent / name)) == 32
    settings = ("train.steps=33", "train.batch_size=24", "run.accept_new_order=true")
    output = succeed("pretrain", *arguments(recipe, name), *settings)
    assert "new order of images from step 32 on: batch_size 12 → 24" in output
    assert [row["images"] for row in metrics(recipe.parent / name)[-2:-1]] == [32 * 12 + 24]


def test_other_classes_are_refused_by_the_first_that_differs(
    recipe: Path, uninterrupted: Path, data: Data, tmp_path: Path
) -> None:
    name = continued(uninterrupted, "classes")
    shutil.copytree(data.train, tmp_path / "renamed")
    classes = json.loads((data.train / "classes.json").read_bytes())
    (tmp_path / "renamed/classes.json").write_text(json.dumps([classes[0], "other", *classes[2:]]))
    call = arguments(recipe, name, "train.steps=31", f"data.train={tmp_path}/renamed", "data.val=")
    done = run("pretrain", *call)
    assert done.returncode == 2
    assert f"class 1 {classes[1]!r}, the data has 'other'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(recipe: Path, uninterrupted: Path) -> None:
    name = continued(uninterrupted, "damaged")
    newest, older = complete(recipe.parent / name / "checkpoints")[:2]
    file = newest / "rank-00000.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    output = succeed("pretrain", *arguments(recipe, name), processes=2)  # rank 1 finds it
    assert f"{newest}: rank-00000.safetensors is damaged" in output
    assert f"{newest} is damaged and set aside as {newest.name}.damaged" in output
    assert f"resumed from {older}" in output
    Checkpoint(newest).verify()
    assert losses(recipe.parent / name) == pytest.approx(losses(uninterrupted), abs=1e-5)


def test_with_no_whole_checkpoint_the_run_is_refused(recipe: Path, uninterrupted: Path) -> None:
    name = continued(uninterrupted, "ruined")
    for checkpoint in complete(recipe.parent / name / "checkpoints"):
        os.truncate(checkpoint / "rank-00001.safetensors", 100)
    metrics_before = metrics(recipe.parent / name)
    done = run("pretrain", *arguments(recipe, name))
    assert done.returncode == 3
    assert "rank-00001.safetensors is damaged" in done.stderr
    assert len(complete(recipe.parent / name / "checkpoints")) == 3
    assert done.stderr.count("\n") == 1
    assert metrics(recipe.parent / name) == metrics_before


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.batch_size=24", "with batch_size=12, lanes=12, this run has batch_size=24, lanes=24"),
        ("run.seed=1", "run.accept_new_order=true"),
        ("optim.name=sgd", "trained with optim.name=adamw, this run has sgd: set it back"),
        ("optim.freeze=[head]", "trained with optim.freeze=[], this run has ['head']"),
        ("model.embed_dim=32", "model/encoder.patch_embed.weight has shape [24, 3, 4, 4]"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    recipe: Path, uninterrupted: Path, setting: str, named: str
) -> None:
    name = continued(uninterrupted, f"other_{setting}")
    kept = {file: file.read_bytes() for file in (recipe.parent / name).glob("[!.]*.*") if file.is_file()}
    done = run("pretrain", *arguments(recipe, name, "train.steps=31"), setting)
    assert done.returncode == 2
    assert named in done.stderr
    assert {file: file.read_bytes() for file in kept} == kept
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("model.num_heads=4", "model.num_heads=2, this run has 4"),
        ("model.activation=relu", "model.activation=gelu, this run has relu"),
        ("model.norm_eps=0.1", "model.norm_eps=1e-06, this run has 0.1"),
        ("model.pool=mean", "model.class_token=True, this run has False"),
        ("data.mean=[0.1,0.1,0.1]", "data.mean=[0.5, 0.5, 0.5], this run has [0.1, 0.1, 0.1]"),
        ("objective.name=sigmoid", "objective.name=softmax, this run has sigmoid"),
    ],
)
def test_another_model_of_the_same_tensors_is_refused(
    recipe: Path, uninterrupted: Path, setting: str, named: str
) -> None:
    found = Checkpoint(complete(uninterrupted / "checkpoints")[0])
    with pytest.raises(UsageError, match=re.escape(f"trained with {named}, which is another model: set")):
        check_model(found, load(str(recipe), [setting]), 3)


def test_what_makes_no_other_model_may_change(recipe: Path, uninterrupted: Path) -> None:
    found = Checkpoint(complete(uninterrupted / "checkpoints")[0])
    sizes = ("model.name=vit_s16", "model.class_token=true", "model.num_classes=3")
    noise = ("model.dropout=0.1", "model.attention_dropout=0.1", "model.drop_path=0.1", "model.head_bias=1")
    seen = ("data.eval_resize=20", "data.eval_crop=false", "data.eval_resample=bilinear", "data.max_pixels=9")
    check_model(found, load(str(recipe), [*sizes, *noise, *seen]), 3)
    del found.state["model"]["activation"], found.state["objective"]  # of an older version
    check_model(found, load(str(recipe), ["model.activation=relu", "objective.name=sigmoid"]), 3)


def test_other_processes_or_micro_batches_change_the_noise_and_that_is_said(
    recipe: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Checkpoint(complete(uninterrupted / "checkpoints")[0])
    noisy, same = load(str(recipe), ["model.drop_path=0.1"]), load(str(recipe), [])
    with caplog.at_level(logging.WARNING, "pretrain"):
        warn_of_other_noise(found, noisy, BatchSplit(12, 2, 6, 1))
        warn_of_other_noise(found, same, BatchSplit(12, 1, 12, 1))
        assert not caplog.text
        warn_of_other_noise(found, noisy, BatchSplit(12, 2, 3, 2))
        assert "from 2 processes and micro-batches of 6 images to 2 and 3: its noise" in caplog.text
        caplog.clear()
        warn_of_other_noise(found, noisy, BatchSplit(12, 1, 6, 2))
        assert "to 1 and 6: its noise" in caplog.text


def test_an_average_that_is_asked_for_later_begins_at_the_loaded_weights(
    recipe: Path, uninterrupted: Path
) -> None:
    folder = recipe.parent / continued(uninterrupted, "averaged")
    settings = ("train.steps=31", "optim.ema=0.75", "optim.schedule=constant", "data.val=")
    output = succeed("pretrain", *arguments(recipe, folder.name), *settings)
    assert "step-00000030 has no averaged weights: the average begins at its weights" in output
    after, before = (Checkpoint(path) for path in complete(folder / "checkpoints")[:2])
    assert (before.step, after.step) == (30, 31)
    for key, name in after.weights("ema").items():
        old, new = before.whole(f"model/{key}"), after.whole(f"model/{key}")
        assert torch.allclose(after.whole(name), 0.75 * old + 0.25 * new, rtol=0, atol=3e-7)


def test_resume_never_refuses_a_folder_that_holds_a_run(recipe: Path, uninterrupted: Path) -> None:
    done = run("pretrain", *arguments(recipe, "whole"), "run.resume=never")
    assert done.returncode == 2
    assert "holds a run" in done.stderr


def test_what_an_interrupted_save_left_is_removed_and_said(recipe: Path, uninterrupted: Path) -> None:
    name = continued(uninterrupted, "litter")
    litter = recipe.parent / name / "checkpoints/step-00000099.tmp"
    litter.mkdir()
    (litter / "rank-00000.safetensors").write_bytes(b"half")
    output = succeed("pretrain", *arguments(recipe, name))
    assert "removed incomplete checkpoint step-00000099.tmp" in output
    assert not litter.exists()


def test_only_the_newest_checkpoints_are_kept(uninterrupted: Path) -> None:
    names = [path.name for path in complete(uninterrupted / "checkpoints")]
    assert names == ["step-00000030", "step-00000025", "step-00000020"]


def test_no_process_reads_or_writes_the_whole_state(uninterrupted: Path) -> None:
    newest = complete(uninterrupted / "checkpoints")[0]
    sizes = [path.stat().st_size for path in sorted(newest.glob("*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)


def test_wandb_keeps_one_id_over_restarts(recipe: Path, data: Data) -> None:
    folder = recipe.parent / "tracked"
    for steps in (3, 6):
        succeed(
            "pretrain",
            *arguments(recipe, "tracked", "tracking.wandb=offline"),
            f"train.steps={steps}",
        )
    runs = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert len({file.stem for file in runs}) == 1
    assert runs[0].stem == f"run-{status(folder)['wandb_id']}"
    assert rows(folder / "metrics.jsonl")
