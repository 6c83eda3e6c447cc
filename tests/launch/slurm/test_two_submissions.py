"""Two submissions of one run at the same moment."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import Data, write_recipe

from launch.__main__ import main
from pretrain.run.lock import take_lock

STUBS = {  # sbatch takes its time, and squeue knows the jobs that it has queued
    "sbatch": 'sleep 0.3; echo $$ >> {jobs}; echo "$$|PENDING|None||${{@: -1}}" >> {queue}; echo $$',
    "squeue": "cat {queue}",
}


def test_one_of_them_is_queued(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, queue = tmp_path / "jobs", tmp_path / "queue"
    queue.touch()
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text.format(jobs=jobs, queue=queue)}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    recipe = write_recipe(tmp_path, data)
    command = ["slurm", str(recipe), f"run.dir={tmp_path}", "--nodes=1", "--gpus-per-node=1"]
    with ThreadPoolExecutor(3) as threads:
        codes = list(threads.map(lambda _: main(command), range(3)))
    (job,) = jobs.read_text().split()
    assert sorted(codes) == [0, 2, 2]
    assert (tmp_path / "tiny/slurm/queued").read_text() == f"{job}\n"
    assert capsys.readouterr().err.count(f"SLURM job {job}: PENDING") == 2


def test_a_lock_that_its_owner_deleted_is_none(tmp_path: Path) -> None:
    with take_lock(tmp_path, 0.0) as first, ThreadPoolExecutor() as threads:
        second = threads.submit(take_lock, tmp_path, 9.0)
        Path(first.name).unlink()
        first.close()
        with second.result() as lock:
            assert os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
