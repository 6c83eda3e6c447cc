"""`python -m launch status`: what it says of a run, from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.status import Standing, describe, look
from pretrain.run.folder import RunFolder


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


def test_status_of_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert main(["status", str(folder)]) == 2
        error = capsys.readouterr().err
        assert f"{folder}: not a run folder" in error and error.count("\n") == 1
