"""`python -m launch status`: what it says of a run, from its folder."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.status import Standing, describe, look
from pretrain.run.folder import NUMBERS, RunFolder


@pytest.mark.parametrize(
    ("facts", "says", "good"),
    [
        ({"state": "running"}, "running  step 40/100  loss 1.5000  img/s 80  eta 0:01:00", True),
        ({"state": "running", "time": 900.0}, "gone: no sign of life for 0:01:40", False),
        ({"state": "running", "step_time": 800.0}, "stalled: no step for 0:03:20, in phase data", False),
        ({"state": "stopping"}, "stopping", True),
        ({"state": "stopped", "time": 0.0}, "stopped", True),
        (
            {"state": "failed", "rank": 3, "reason": "why", "exit_code": 1},
            "failed, exit code 1 (rank 3): why",
            False,
        ),
        ({"state": "done", "time": 0.0}, "done", True),
    ],
)
def test_status_tells_how_a_run_stands(tmp_path: Path, facts: dict[str, Any], says: str, good: bool) -> None:
    usual = {
        "step": 40,
        "steps": 100,
        "loss": 1.5,
        "images_per_s": 80.0,
        "seconds_left": 60.0,
        "phase": "data",
    }
    found = {"time": 999.0, "step_time": 999.0, **usual, **facts}
    text, well = describe(RunFolder(tmp_path), Standing(found), 1000.0)
    assert says in text and well == good


@pytest.mark.parametrize(
    ("known", "last", "queued", "says", "good", "over"),
    [
        ({}, None, "8", "queued as SLURM job 8", True, False),
        ({"state": "stopped"}, {"requeued": True}, "7", "stopped, requeued  step 40", True, False),
        ({"state": "stopped"}, {"requeued": False}, "7", "stopped  step 40", True, True),
        ({"state": "stopped"}, None, "7", "stopped", True, False),
        (
            {"state": "running"},
            {"restart": 2, "requeued": False},
            "7",
            "failed, exit code 3: why",
            False,
            True,
        ),
        ({"state": "done"}, {"requeued": False}, "8", "queued as SLURM job 8", True, False),
    ],
    ids=[
        "waits for its first life",
        "comes back",
        "does not come back",
        "its script has not spoken",
        "failed before it began",
        "queued for more steps",
    ],
)
def test_status_knows_what_became_of_the_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: dict[str, Any],
    last: dict[str, Any] | None,
    queued: str,
    says: str,
    good: bool,
    over: bool,
) -> None:
    monkeypatch.setenv("PATH", "")
    folder, usual = RunFolder(tmp_path), {"step": 40, "job": "7", "restart": 1, "time": 999.0}
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/queued").write_text(f"{queued}\n")
    if known:
        folder.status_file.write_text(json.dumps(usual | known))
    if last:
        row = {"job": "7", "restart": 1, "state": "failed", "code": 3, "reason": "why", "time": 1000.0} | last
        (tmp_path / "slurm/lives.jsonl").write_text(json.dumps(row) + "\n")
    found = look(folder)
    text, well = describe(folder, found, 1001.0)
    assert says in text and (well, found.is_over(1001.0)) == (good, over)


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `script` answer for squeue."""
    (folder / "bin").mkdir()
    (folder / "bin/squeue").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:/bin")


def write_run(folder: Path, queued: str = "", **facts: Any) -> Path:
    (folder / "slurm").mkdir(parents=True)
    if queued:
        (folder / "slurm/queued").write_text(queued)
    if facts:
        usual = {"step": 40, "steps": 100, "time": time.time(), "job": "7", "restart": 0}
        (folder / "status.json").write_text(json.dumps(usual | facts))
    return folder


def answer(folder: Path, job: str, state: str, reason: str) -> str:
    return f"echo '{job}|{state}|{reason}|(null)|/elsewhere/{folder.name}/slurm/job.sh'"


@pytest.mark.parametrize(
    ("answers", "facts", "says", "code"),
    [
        ([("8", "RUNNING", "None")], {}, "SLURM job 8: RUNNING\n", 0),
        ([("8", "PENDING", "Priority")], {"state": "done"}, "SLURM job 8: PENDING (Priority)\n", 0),
        (
            [("7", "RUNNING", "None"), ("8", "PENDING", "Dependency")],
            {"state": "running"},
            "SLURM job 8: PENDING (Dependency)\n",
            0,
        ),
        ([("8", "PENDING", "None")], {"state": "running", "time": 1.0}, "interrupted  step", 0),
        ([], {"state": "running", "time": 1.0}, "gone: no sign of life", 1),
        ([], {"state": "stopped"}, "stopped  step", 0),
        ([], {}, "SLURM job 8 is no longer in the queue", 1),
        (None, {}, "queued as SLURM job 8 (squeue: SLURM gave no answer", 0),
    ],
    ids=["starts", "more steps", "chain", "lost its node", "gone", "later start", "cancelled", "no answer"],
)
def test_status_asks_the_queue_about_the_jobs_of_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[str, str, str]] | None,
    facts: dict[str, Any],
    says: str,
    code: int,
) -> None:
    run = write_run(tmp_path / "run", "7\n8\n", **facts)
    os.utime(run / "slurm/queued", (time.time() - 9, time.time() - 9))
    stranger = "echo '8|RUNNING|None|(null)|/elsewhere/another/slurm/job.sh'"
    lines = [stranger, *(answer(run, *words) for words in answers or ())]
    squeue(tmp_path, monkeypatch, "\n".join(lines) if answers is not None else "sleep 30")
    monkeypatch.setattr("launch.slurm.queue.PATIENCE", 10.0 if answers is not None else 0.1)
    assert main(["status", str(run)]) == code
    assert says in (out := capsys.readouterr().out) and "None" not in out


def test_status_of_a_folder_of_runs_has_a_line_for_each_and_asks_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "a", state="running", loss=1.5, images_per_s=80.0, seconds_left=60.0)
    waits = write_run(runs / "slurm", "8\n")
    write_run(runs / "z", "9\n", state="done")
    (runs / "no run").mkdir()
    squeue(tmp_path, monkeypatch, f"echo x >> {tmp_path}/asked; {answer(waits, '8', 'PENDING', 'Priority')}")
    assert main(["status", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "a step 40/100 loss 1.5000 img/s 80 eta 0:01:00 running",
        "slurm SLURM job 8: PENDING (Priority)",
        "z step 40/100 done",
    ]
    assert (tmp_path / "asked").read_text() == "x\n"
    write_run(runs / "b", state="failed", exit_code=3, reason="two\nlines")
    assert main(["status", str(runs)]) == 1
    assert "failed, exit code 3: two\\nlines" in capsys.readouterr().out
    assert main(["status", str(runs), "--follow"]) == 2


def test_status_of_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert main(["status", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{folder}: not a run folder" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "5", "", '{"state": 3}', None])
def test_a_status_that_is_lost_is_not_a_run_that_never_began(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "step-00000014").mkdir(parents=True)
    (checkpoints / "latest").write_text("step-00000014\n")
    if content is not None:
        (tmp_path / "run/status.json").write_text(content)
        assert main(["status", str(tmp_path)]) == 1
    text, good = describe(RunFolder(tmp_path / "run"), look(RunFolder(tmp_path / "run")), time.time())
    assert not good and "status.json cannot be read" in text and "step-00000014" in text


def test_figures_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    odd = ("x", [], None, math.nan, math.inf, 10**400)
    for number in range(6):
        figures = dict(zip(NUMBERS[1:], odd[number:] + odd[:number], strict=True))
        run = tmp_path / str(number)
        run.mkdir()
        (run / "status.json").write_text(
            json.dumps({"state": "running", "time": 9.0, "processes": 2} | figures)
        )
        assert main(["status", str(run)]) == 1
