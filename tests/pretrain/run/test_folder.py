"""The run folder: one job at a time writes to it, and can."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT, Data, run, write_recipe

from data_tools.errors import UsageError, UserError
from pretrain.run.folder import RunFolder


def test_two_jobs_cannot_write_to_the_same_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.create()
    first.lock()
    with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
        second.lock(patience=0.0)


def test_what_an_earlier_life_of_a_slurm_job_left_on_this_node_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = "folder.create(); folder.lock(); print('held', flush=True); time.sleep(600)"
    code = "import sys, time; from pathlib import Path; from pretrain.run.folder import RunFolder; "
    left = subprocess.Popen(
        [sys.executable, "-c", f"{code} folder = RunFolder(Path(sys.argv[1])); {hold}", tmp_path],
        cwd=ROOT,
        env=os.environ | {"SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
    )
    try:
        assert left.stdout and left.stdout.readline() == b"held\n"
        folder = RunFolder(tmp_path)
        for job, restart in (("7", "0"), ("8", "1")):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
            with pytest.raises(UsageError, match=f"in use by process {left.pid} on .* of SLURM job 7"):
                folder.lock(patience=0.0)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with monkeypatch.context() as elsewhere, pytest.raises(UserError, match="still in use by") as raised:
            elsewhere.setattr("pretrain.run.lock.socket.gethostname", lambda: "another-node")
            folder.lock(patience=0.0)
        assert raised.value.exit_code == 1, "it will not stay for ever: the job may be requeued"
        folder.lock(patience=30.0)
        assert left.wait(timeout=30) == -signal.SIGKILL
    finally:
        left.kill()
        left.communicate()


def test_a_place_that_cannot_be_written_is_named_at_the_start(unprivileged: Path) -> None:
    (unprivileged / "file").touch()
    (unprivileged / "closed").mkdir(mode=0o555)
    for place in ("file", "file/deeper", "closed", "closed/deeper"):
        with pytest.raises(UsageError, match=f"{place}: it cannot be written: "):
            RunFolder(unprivileged / place).create()
    with pytest.raises(UsageError, match=r"/proc/nope: it cannot be written"):
        RunFolder(Path("/proc/nope")).create()


def test_checkpoints_that_cannot_be_saved_are_found_before_the_first_step(data: Data, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "checkpoints").touch()
    done = run("pretrain", write_recipe(tmp_path, data), f"run.dir={tmp_path}")
    assert done.returncode == 2
    assert f"error: {folder}/checkpoints: it cannot be written: File exists" in done.stderr
    assert done.stderr.count("\n") == 1
