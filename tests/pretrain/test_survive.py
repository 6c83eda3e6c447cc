"""A run that meets trouble: it goes on where it can, and otherwise says who, where and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jobs import Data, losses, metrics, rows, run, status, succeed, trace, write_recipe

from data_tools.errors import DivergedError, UsageError
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.config.fault import parse_fault
from pretrain.config.loading import load
from pretrain.engine.optim import SGD
from pretrain.run.folder import RunFolder
from pretrain.run.nonfinite import NonFinite
from pretrain.run.watchdog import describe_hang, hanging_rank


@pytest.fixture
def recipe(data: Data, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, data)


@pytest.mark.parametrize(
    ("engine", "processes"),
    [(("engine.kind=fsdp",), 2), (("engine.kind=deepspeed", "engine.zero_stage=2"), 2)],
)
def test_a_step_that_is_not_finite_changes_nothing_and_its_samples_are_noted(
    recipe: Path, engine: tuple[str, ...], processes: int
) -> None:
    """The loss of one process is NaN in step 3: the update is left out on all, and nothing is saved of it."""
    common = (recipe, f"run.dir={recipe.parent}", "train.steps=4", "checkpoint.every=1", "checkpoint.keep=0")
    succeed("pretrain", *common, *engine, "fault=nan:rank=1:step=3", processes=processes)
    folder = recipe.parent / "tiny"
    assert [step for step, loss in losses(folder).items() if loss is None] == [3]
    noted = rows(folder / "nonfinite.jsonl")
    used = trace(folder)[3]
    assert [row["step"] for row in noted] == [3]
    assert noted[0]["positions"] == [24, 35] and sorted(noted[0]["keys"]) == sorted(key for _, key, _ in used)
    saved = {int(path.name[5:]): Checkpoint(path) for path in complete(folder / "checkpoints")}
    assert sorted(saved) == [1, 2, 4]  # nothing is saved while the loss is not finite
    assert set(saved[4].state["optimizer_steps"].values()) == {3}
    assert all(torch.isfinite(saved[4].whole(key)).all() for key in saved[4].tensors)


def test_sgd_leaves_a_step_out_bit_for_bit() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.state[weight]["momentum_buffer"] = torch.randn(5)
    for bad in (True, False):
        before = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
        weight.grad = torch.full((5,), float("nan") if bad else 1.0)
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        same = (
            torch.equal(weight, before[0]),
            torch.equal(optimizer.state[weight]["momentum_buffer"], before[1]),
        )
        assert same == (bad, bad)


def test_only_so_many_steps_in_a_row_are_left_out() -> None:
    watch = NonFinite(limit=3)
    for step, norm in enumerate([1.0, float("nan"), float("inf"), 1.0, float("nan"), float("nan")], 1):
        watch.add(step, torch.tensor(norm))
    assert watch.look() == [2, 3, 5, 6]
    watch.check()
    watch.add(7, torch.tensor(float("nan")))
    assert watch.look() == [7] and watch.streak == 3
    with pytest.raises(DivergedError, match="3 steps in a row"):
        watch.check()


def test_steps_can_be_passed_over_and_positions_are_kept(recipe: Path) -> None:
    common = (recipe, f"run.dir={recipe.parent}", "train.steps=8")
    succeed("pretrain", *common, "train.skip=[[3,5]]")
    folder = recipe.parent / "tiny"
    assert list(losses(folder)) == list(trace(folder)) == [1, 2, 6, 7, 8]
    assert trace(folder)[6][0][0] == 5 * 12
    assert next(row for row in metrics(folder) if row["step"] == 6)["images"] == 6 * 12


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.skip=[[3]]", "not a range"),
        ("train.skip=[[40,50]]", "last step"),
        ("fault=explode:rank=1", "'explode' is not one of kill"),
        ("fault=kill:node=1", "'node=1' is none of rank=int"),
        ("fault=kill:step=x", "'step=x'"),
        ("fault=hang:phase=lunch", "phase=lunch"),
    ],
)
def test_a_wrong_range_or_fault_is_refused(recipe: Path, setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load(str(recipe), [setting])


def test_no_fault_unless_asked() -> None:
    assert parse_fault("") is None


def test_a_rank_that_raises_ends_the_job_with_its_traceback_and_name(recipe: Path) -> None:
    call = (recipe, f"run.dir={recipe.parent}", "engine.kind=fsdp", "fault=raise:rank=1:step=3")
    done = run("pretrain", *call, processes=2, cold=True)
    found = status(recipe.parent / "tiny")
    assert (found["state"], found["exit_code"], found["rank"]) == ("failed", 1, 1)
    assert "InjectedFault: fault=raise in step 3" in found["traceback"]
    ours = done.stderr.partition("torch/distributed")[0]
    assert (done.stdout + ours).count("Traceback") == 1, "the others failed because of it, and keep silent"
    assert "Traceback" in (recipe.parent / "tiny/logs/rank-0.log").read_text()
    assert "error: rank 1 on " in ours and "InjectedFault" in done.stderr.partition("Root Cause")[2]
    assert done.returncode
    assert "no progress" not in (recipe.parent / "tiny/logs/rank-0.log").read_text(), "it ended by itself"


def test_a_rank_that_hangs_is_named_and_every_stack_is_kept(recipe: Path) -> None:
    limit = 20  # three quarters of it must be enough for the start, on a slow machine too
    done = run(
        "pretrain",
        recipe,
        f"run.dir={recipe.parent}",
        "engine.kind=fsdp",
        f"train.step_timeout={limit}",
        "fault=hang:rank=1:step=4:phase=data",
        processes=2,
    )
    folder = recipe.parent / "tiny"
    found = status(folder)
    assert done.returncode and (found["state"], found["exit_code"], found["rank"]) == ("failed", 1, 1)
    assert "rank 1 on " in found["reason"] and "hangs in step 4, phase data" in found["reason"]
    assert found["reason"] in done.stderr
    assert found["time"] - metrics(folder)[-1].get("time", found["step_time"]) < limit + 1
    for rank in (0, 1):
        assert "File " in (folder / f"logs/rank-{rank}.log").read_text().partition("no progress")[2]
        assert json.loads((folder / f"logs/hang/rank-{rank}.json").read_text())["step"] == 4
    assert "in enter" in (folder / "logs/rank-1.log").read_text()


@pytest.mark.parametrize(
    ("reports", "rank"),
    [
        ([(0, 5, "compute", True), (1, 5, "data", False)], 1),
        ([(0, 5, "agree", True), (1, 5, "agree", False)], 1),
        ([(0, 6, "data", False), (1, 5, "save", False)], 1),
        ([(0, 5, "compute", True), (2, 5, "compute", True)], 1),
        ([(0, 6, "data", False), (1, 5, "evaluation", True), (2, 5, "save", True)], 1),
    ],
    ids=["behind the others", "does not wait", "a step behind", "does not answer", "evaluates still"],
)
def test_who_hangs(reports: list[tuple[int, int, str, bool]], rank: int) -> None:
    found = [dict(zip(("rank", "step", "phase", "waits"), report, strict=True)) for report in reports]
    assert hanging_rank(found, max(report[0] for report in reports) + 1) == rank


def test_one_that_does_not_answer_is_named_with_its_host_and_where_the_others_wait() -> None:
    text = describe_hang([{"rank": 0, "step": 5, "phase": "compute"}], ["node1", "node2"], 12.0)
    assert text.startswith("rank 1 on node2 does not answer") and "in step 5, phase compute, for 12 s" in text


def test_what_is_said_while_running_does_not_cover_how_the_job_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.set_status("starting", anew=True, restart=1)
    folder.set_status("stopping", signal="SIGTERM")
    folder.set_status("running", step=3)
    assert (folder.status()["state"], folder.status()["step"]) == ("stopping", 3)
    assert folder.set_failed(exit_code=1, rank=2, reason="first")
    assert not folder.set_failed(exit_code=1, rank=0, reason="second")
    folder.set_status("running", step=4)
    assert (folder.status()["state"], folder.status()["reason"]) == ("failed", "first")
    folder.set_status("starting", anew=True, restart=2)
    assert "reason" not in folder.status() and "signal" not in folder.status()


def test_a_rank_that_was_killed_is_the_cause_and_not_those_that_lost_it(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    done = run("pretrain", recipe, f"run.dir={tmp_path}", "fault=kill:rank=1:step=2", processes=2)
    assert done.returncode != 0
    found = status(tmp_path / "tiny")
    assert (found["state"], found["rank"]) == ("failed", 1)
    assert "rank 1 on " in found["reason"] and "ended without a word" in found["reason"]
    assert "traceback" not in found and ".cc" not in found["reason"]
    assert f"error: {found['reason']}" in done.stderr
