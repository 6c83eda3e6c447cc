"""The jobs of a run in SLURM's queue: squeue is asked for those that the run folder names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import UserError

RECORD = (
    "slurm/queued"  # in a run folder: a line with the id of each job that was queued for it, the newest last
)
SCRIPT = "slurm/job.sh"
NO_SUCH_JOB = "Invalid job id"
PATIENCE = 10.0  # s; squeue itself waits for minutes where the controller cannot be reached


@dataclass(frozen=True)
class Entry:
    """A job in the queue. after: the jobs that it waits for, as SLURM writes it."""

    job: str
    state: str
    reason: str
    after: str
    script: str

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"SLURM job {self.job}: {self.state}{reason}"


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands. Raises UserError if it is not on this machine or gives no answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: SLURM gave no answer in {PATIENCE:.0f} s: try again later") from None


def read_queue(selection: str) -> list[Entry]:
    """The jobs that squeue shows with an option such as --jobs=7,8.

    Raises UserError if SLURM does not answer.
    """
    done = ask("squeue", "--noheader", selection, "--format=%i|%T|%r|%E|%o")
    if done.returncode and NO_SUCH_JOB not in done.stderr:  # which says that it is over for long
        raise UserError(f"squeue: {' '.join(done.stderr.split())}")
    return [Entry(*line.split("|", 4)) for line in done.stdout.splitlines() if line.count("|") >= 4]


def recorded(run: Path) -> list[str]:
    """The ids of the jobs that were queued for the run and are not known to be over, the newest last."""
    try:
        return re.findall(r"^\d+$", (run / RECORD).read_text(encoding="utf-8", errors="replace"), re.M | re.A)
    except OSError:
        return []


def in_queue(runs: Iterable[Path]) -> dict[Path, list[Entry]]:
    """The recorded jobs of each run that are in the queue. Raises UserError if SLURM does not answer."""
    jobs = {run: recorded(run) for run in runs}
    asked = sorted({job for ids in jobs.values() for job in ids})
    queue = read_queue(f"--jobs={','.join(asked)}") if asked and has_slurm() else []
    # By the script's place too, since a cluster that was set up anew gives its ids again.
    return {
        run: [entry for entry in queue if entry.job in ids and _is_of(run, entry)]
        for run, ids in jobs.items()
    }


def _is_of(run: Path, entry: Entry) -> bool:
    """Whether the job runs the script of this run, whose folder may be mounted elsewhere on other nodes."""
    place = (run.resolve() / SCRIPT).parts[-3:]
    return Path(entry.script).parts[-3:] == place


def followers(jobs: set[str]) -> list[Entry]:
    """The jobs of this user in the queue that were queued to start after one of `jobs`."""
    queue = read_queue(f"--user={os.getuid()}")
    return [entry for entry in queue if entry.job not in jobs and jobs & set(re.findall(r"\d+", entry.after))]


def state_of(job: str) -> str:
    """The state of a job, also of one that is over, or NO_SUCH_JOB; "" where SLURM cannot be asked."""
    if not has_slurm():
        return ""
    done = ask("scontrol", "show", "job", "-o", job)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    return found[1] if found else NO_SUCH_JOB if NO_SUCH_JOB in done.stderr else ""


def has_slurm() -> bool:
    """Whether this machine can ask SLURM about jobs."""
    return shutil.which("squeue") is not None
