"""Names of the version before that still work or say where they went; they go with the next release."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT


def in_job(module: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a module as the batch script of a queued job does."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    env = os.environ | {"SLURM_JOB_ID": "4321", "SLURM_RESTART_COUNT": "0"} | variables
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_job_queued_before_the_move_finds_its_address() -> None:
    done = in_job("launch.address", MASTER_ADDR="node1")
    assert done.returncode == 0, done.stderr
    name, port = done.stdout.split()
    assert name == "node1" and 20000 <= int(port) < 30000


@pytest.mark.parametrize(("srun", "code"), [(2, 2), (139, 75)])
def test_a_job_queued_before_the_move_learns_whether_it_is_requeued(
    srun: int, code: int, tmp_path: Path
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho JobState=RUNNING PreemptTime=None Restarts=0\n")
    scontrol.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = in_job("launch.verdict", tmp_path / "run", srun, "--max-restarts", 3, PATH=path)
    assert done.returncode == code, done.stderr
    life = json.loads((tmp_path / "run/slurm/lives.jsonl").read_text())
    assert (life["job"], life["requeued"]) == ("4321", code == 75)
    assert f"ended without writing a status (srun exit code {srun})" in done.stdout


def test_the_old_import_says_where_the_formats_are() -> None:
    with pytest.raises(ImportError, match=r"finetune\.formats"):
        importlib.import_module("pretrain.model.interchange")
