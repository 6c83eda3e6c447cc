"""The state of a run, from its folder alone: on any machine that has the folder, while it runs and after."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UsageError
from pretrain.run.files import read_rows
from pretrain.run.folder import GOING_ON, RunFolder

from .slurm.requeue import QUEUED

SILENT = 30.0  # s without a new status.json, which a job writes every 5 s
STALLED_STEPS = 20.0  # step times without a new step; at least STALLED seconds
STALLED = 60.0  # s
TOLD = ("job", "restart", "state", "code", "reason", "time", "requeued")  # of a life
GONE = " is no longer in the queue, and wrote no status"


def main(arguments: Sequence[str]) -> int:
    """Print the state of a run; returns 1 if it failed, is stalled or gone, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="python -m launch status",
        description="How a run stands, from its folder alone. Exit code 1: failed, stalled or gone.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--follow", action="store_true", help="print a line at every change, to the end")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.run)
    told = None
    while True:
        if not folder.status() and not (given.run / "slurm").is_dir():
            raise UsageError(f"{given.run}: not a run folder: it has no status.json")
        found = look(folder)
        text, good = describe(folder, found, time.time())
        if text.splitlines()[0] != told:
            print(text, flush=True)
            told = text.splitlines()[0]
        if not given.follow or found.is_over(time.time()):
            return 0 if good else 1
        time.sleep(20.0 if found.waiting else 1.0)


@dataclass(frozen=True)
class Standing:
    """The state of a run. A SLURM job that is requeued runs several times; each time is called a life.

    status: of the last life, from status.json, or from lives.jsonl if it ended before it wrote one.
    requeued: whether another life follows; None if the batch script has not decided yet. waiting: a sentence
    about a job that was queued after that life, or "".
    """

    status: dict[str, Any]
    requeued: bool | None = None
    waiting: str = ""

    def is_over(self, now: float) -> bool:
        """Whether the run will not go on. now: seconds since 1970."""
        if self.waiting:
            return self.waiting.endswith(GONE)
        if self.requeued is not None:
            return not self.requeued
        ended = self.status.get("state") in ("done", "failed", "stopped")
        # The batch script of a SLURM job may still requeue it; it has SILENT seconds to write that down.
        return ended and (not self.status.get("job") or now - self.status["time"] > SILENT)


def look(folder: RunFolder) -> Standing:
    """Read the state from status.json, slurm/lives.jsonl, slurm/queued and SLURM's queue, if there is one."""
    status = folder.status()
    life: dict[str, Any] = [{}, *read_rows(folder.path / "slurm/lives.jsonl", *TOLD)][-1]
    queued = folder.path / QUEUED
    job = queued.read_text(encoding="utf-8").strip() if queued.exists() else None
    waiting = "" if job in (None, status.get("job"), life.get("job")) else queued_text(str(job))
    same = all(life.get(key) == status.get(key) for key in ("job", "restart"))
    if not life or (not same and life["time"] < status.get("time", 0.0)):
        return Standing(status, None, waiting)
    if not same:
        facts = {key: life[key] for key in ("state", "job", "restart")}
        reason = life["reason"].removeprefix("failed: ")
        status = status | facts | {"exit_code": life["code"], "reason": reason, "rank": None}
    return Standing(status, life["requeued"], waiting)


def queued_text(job: str) -> str:
    """A sentence about a job that is queued, with squeue's answer where there is one."""
    if not shutil.which("squeue"):
        return f"queued as SLURM job {job}"
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T (%r)"]
    done = subprocess.run(asked, capture_output=True, text=True)
    answer = done.stdout.strip()
    if not answer and (done.returncode == 0 or "Invalid job id" in done.stderr):
        return f"SLURM job {job}{GONE}"
    return f"SLURM job {job}: {answer}" if answer else f"queued as SLURM job {job}"


def describe(folder: RunFolder, found: Standing, now: float) -> tuple[str, bool]:
    """(two lines of text, whether all is well). now: seconds since 1970."""
    status = found.status
    if not status:
        return f"{folder.path}: {found.waiting or 'has not begun'}", not found.waiting.endswith(GONE)
    state, trouble = status["state"], ""
    if state in GOING_ON:
        silent, idle = now - status["time"], now - status.get("step_time", status["time"])
        usual = status.get("seconds_left", 0.0) / max(1, status.get("steps", 0) - status.get("step", 0))
        if silent > SILENT:
            trouble = f"gone: no sign of life for {duration(silent)}"
        elif state == "running" and idle > max(STALLED, STALLED_STEPS * usual):
            trouble = f"stalled: no step for {duration(idle)}, in phase {status.get('phase')}"
    elif state == "failed":
        where = f" (rank {status['rank']})" if status.get("rank") is not None else ""
        trouble = f"failed, exit code {status.get('exit_code')}{where}: {status.get('reason')}"
    again = ", requeued" if found.requeued else ""
    parts = [
        f"{folder.path}: {trouble or state}{again}",
        f"step {status.get('step', 0)}/{status.get('steps', '?')}",
    ]
    if status.get("loss") is not None:
        parts.append(f"loss {status['loss']:.4f}")
    if status.get("images_per_s"):
        parts.append(f"img/s {status['images_per_s']:.0f}")
    if state == "running" and status.get("seconds_left") is not None:
        parts.append(f"eta {duration(status['seconds_left'])}")
    details = [_checkpoint(folder, now)]
    if "processes" in status:
        details.append(f"processes {status['processes']} from {status['host']}")
    if status.get("job"):
        details.append(f"SLURM job {status['job']}, restarts {status.get('restart', 0)}")
    if found.waiting:
        details.append(found.waiting)
    return "  ".join(parts) + "\n  " + " · ".join(details), not trouble


def _checkpoint(folder: RunFolder, now: float) -> str:
    try:
        name = (folder.checkpoints / "latest").read_text(encoding="utf-8").strip()
        age = now - (folder.checkpoints / name).stat().st_mtime
    except (OSError, ValueError):
        return "no checkpoint yet"
    return f"checkpoint {name}, {duration(age)} ago"


def duration(value: float) -> str:
    """Seconds as hours:minutes:seconds."""
    minutes, rest = divmod(max(0, int(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
