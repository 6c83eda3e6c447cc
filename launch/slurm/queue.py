"""The jobs of a run in SLURM's queue: what squeue says of those that the run folder names, and their end."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import Parser, UsageError, UserError, print_line

RECORD = "slurm/queued"  # in a run folder: the ids of the jobs that were queued for it, the newest last
SCRIPT = "slurm/job.sh"
NO_SUCH_JOB = "Invalid job id"
SILENT = 30.0  # s without a new status.json, which a job writes every 5 s
PATIENCE = 10.0  # s; squeue itself waits for minutes where the controller cannot be reached
END_PATIENCE = 60.0  # s for the processes of a job to save and end; SLURM's KillWait is 30 s


@dataclass(frozen=True)
class Entry:
    """A job in the queue. state: "" if it is not known. after: what it waits for, as SLURM writes it."""

    job: str
    state: str
    reason: str
    after: str = ""
    script: str = ""

    def __str__(self) -> str:
        what = f"SLURM job {self.job}: {self.state}" if self.state else f"queued as SLURM job {self.job}"
        return what + (f" ({self.reason})" if self.reason not in ("", "None") else "")


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands. Raises UserError if it is not on this machine or gives no answer."""
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=PATIENCE
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: SLURM gave no answer in {PATIENCE:.0f} s: try again later") from None


def read_queue(selection: str) -> list[Entry]:
    """The jobs that squeue shows with an option such as --jobs=7,8. Raises UserError without an answer."""
    done = ask("squeue", "--noheader", selection, "--format=%i|%T|%r|%E|%o")
    if done.returncode and NO_SUCH_JOB not in done.stderr:  # which says that it is over for long
        raise UserError(f"squeue: {' '.join(done.stderr.split())}")
    return [Entry(*line.split("|", 4)) for line in done.stdout.splitlines() if line.count("|") >= 4]


def recorded(run: Path) -> list[str]:
    """The ids of the jobs that were queued for the run, the newest last."""
    try:
        return re.findall(r"^[0-9]+$", (run / RECORD).read_text(encoding="utf-8", errors="replace"), re.M)
    except OSError:
        return []


def in_queue(runs: Iterable[Path]) -> dict[Path, list[Entry]]:
    """The recorded jobs of each run that are in the queue; without an answer of SLURM, the newest and why."""
    jobs = {run: recorded(run) for run in runs}
    asked = sorted({job for ids in jobs.values() for job in ids})
    try:
        queue = read_queue(f"--jobs={','.join(asked)}") if asked else []
    except UserError as error:
        return {run: [Entry(job, "", str(error)) for job in ids[-1:]] for run, ids in jobs.items()}
    # By the script's place too, since a cluster that was set up anew gives its ids again; but not by folders
    # above the run, which may be mounted elsewhere on other nodes.
    return {
        run: [
            entry
            for entry in queue
            if entry.job in ids and Path(entry.script).parts[-3:] == (run.resolve() / SCRIPT).parts[-3:]
        ]
        for run, ids in jobs.items()
    }


def state_of(job: str) -> str:
    """The state of a job, also of one that is over, or NO_SUCH_JOB; "" where SLURM does not answer."""
    try:
        done = ask("scontrol", "show", "job", "-o", job)
    except UserError:
        return ""
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    return found[1] if found else NO_SUCH_JOB if NO_SUCH_JOB in done.stderr else ""


def cancel(arguments: Sequence[str]) -> int:
    """Cancel the jobs of a run and wait until they have left the queue. Returns the exit code."""
    parser = Parser(
        prog="python -m launch cancel",
        description="End a run's SLURM job, also where it waits to begin again. It saves a checkpoint first.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    run: Path = parser.parse_args(arguments).run
    if not recorded(run):
        raise UsageError(f"{run}: no job is queued or running that python -m launch slurm queued for it")
    jobs = {entry.job for entry in in_queue([run])[run]}
    for entry in read_queue(f"--user={os.getuid()}"):
        if entry.job not in jobs and jobs & set(re.findall(r"\d+", entry.after)):
            print_line(f"SLURM job {entry.job} was to start after it ({entry.script}): SLURM drops it")
    limit, cancelled = time.monotonic() + END_PATIENCE, set[str]()
    while entries := in_queue([run])[run]:
        for entry in entries:  # each time, as one that was just being requeued may come back
            done = ask("scancel", entry.job)
            if "denied" in done.stderr:
                raise UserError(f"scancel {entry.job}: {' '.join(done.stderr.split())}")
            if entry.job not in cancelled:
                print_line(f"SLURM job {entry.job} is cancelled; it was {entry.state}")
                cancelled.add(entry.job)
        if time.monotonic() > limit:
            print_line(f"{entries[0]}: its processes have not ended yet")
            return 0
        time.sleep(1.0)
    begun = [job for job in recorded(run) if (run / f"slurm/{job}.out").exists()]
    (run / RECORD).write_text("".join(f"{job}\n" for job in begun), encoding="utf-8")
    if not jobs:
        print_line(f"{run}: none of its jobs is in the queue any more")
    return 0
