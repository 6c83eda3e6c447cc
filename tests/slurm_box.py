"""The real SLURM cluster on this machine that tests use, and the jobs in it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import ROOT, TIMEOUT, metrics, run

QUEUED: list[str] = []  # what is cancelled in the end
BOX = ROOT.parent / "shared/slurm/cluster"


class Unavailable(Exception):
    """Why there is no cluster here."""


@contextmanager
def cluster(nodes: int = 2) -> Iterator[None]:
    """A running cluster; one that runs already is used and left running. Raises Unavailable."""
    if not BOX.exists():
        raise Unavailable("the shared SLURM cluster is not here")
    if os.geteuid() != 0:
        raise Unavailable("the SLURM cluster on one machine needs root")
    ours = subprocess.run([BOX, "status"], capture_output=True).returncode != 0
    # SLURM's own patience, not the box's short one: a slow machine needs it to save a checkpoint.
    command = [BOX, "up", "--nodes", str(nodes), "--set", "KillWait=30"]
    up = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if up.returncode:
        raise Unavailable(f"no SLURM cluster: {up.stderr.strip().splitlines()[-1]}")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = up.stdout.strip().partition("=")[2]
    try:
        if ours:
            call("scontrol", "update", "partitionname=preempt", "gracetime=30")
        yield
    finally:
        while QUEUED:
            subprocess.run(["scancel", QUEUED.pop()], capture_output=True)
        if ours:
            subprocess.run([BOX, "down"], capture_output=True)
        os.environ.pop("SLURM_CONF")
        if before:
            os.environ["SLURM_CONF"] = before


def call(*command: object) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class QueuedJob:
    """A job of `python -m launch slurm`, whose run folder is `folder`."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        done = run("launch", "slurm", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        self.id = re.search(r"job (\d+) is queued", done.stdout)[1]  # type: ignore[index]
        QUEUED.append(self.id)

    def field(self, name: str) -> str:
        found = re.search(rf"(?:^| ){name}=(\S*)", call("scontrol", "show", "job", "-o", self.id))
        assert found
        return found[1]

    @property
    def state(self) -> str:
        return self.field("JobState")

    @property
    def restarts(self) -> int:
        return int(self.field("Restarts"))

    @property
    def output(self) -> str:
        file = self.folder / f"slurm/{self.id}.out"
        return file.read_text() if file.exists() else ""

    @property
    def step(self) -> int:
        return max((row["step"] for row in metrics(self.folder)), default=0)

    def wait_until(self, condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
        limit = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < limit, f"{self.state}, restarts {self.restarts}: {self.output[-3000:]}"
            over = self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
            assert not over or condition(), f"{self.state}: {self.output[-3000:]}"
            time.sleep(0.5)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.step >= step)

    def wait_for_restart(self, count: int) -> None:
        """Until SLURM has queued the job so often again."""
        self.wait_until(lambda: self.restarts >= count and self.state == "PENDING")

    def preempt(self) -> None:
        """Have a job of more importance take the nodes for a moment."""
        command = ["sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null"]
        call(*command, "--wrap", "sleep 1")
