"""`python -m launch cancel RUN`: end the jobs of a run, so that none of them comes back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from data_tools.errors import UsageError, UserError

from .queue import RECORD, ask, followers, has_slurm, in_queue, recorded

PATIENCE = 60.0  # s for the processes of a job to save and end; SLURM's KillWait is 30 s


def main(arguments: Sequence[str]) -> int:
    """Cancel the jobs of a run and wait until they have left the queue. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch cancel",
        description="End a run's SLURM job, also where it waits to begin again. It saves a checkpoint first.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    run: Path = parser.parse_args(arguments).run
    if not recorded(run):
        raise UsageError(f"{run}: no job was queued for it by python -m launch slurm")
    if not has_slurm():
        raise UsageError("squeue is not on this machine: cancel the job where it was queued")
    jobs = {entry.job for entry in in_queue([run])[run]}
    if not jobs:
        print(f"{run}: none of its jobs is in the queue")
    for entry in followers(jobs):
        print(f"SLURM job {entry.job} was to start after it ({entry.script}): SLURM drops it")
    limit = time.monotonic() + PATIENCE
    cancelled: set[str] = set()
    while entries := in_queue([run])[run]:
        # One that was just being requeued is COMPLETING, and then PENDING.
        for entry in entries:
            if entry.state == "COMPLETING":
                continue
            done = ask("scancel", entry.job)
            if "denied" in done.stderr:
                raise UserError(f"scancel {entry.job}: {' '.join(done.stderr.split())}")
            if entry.job not in cancelled:
                print(f"SLURM job {entry.job} is cancelled; it was {entry.state}", flush=True)
                cancelled.add(entry.job)
        if time.monotonic() > limit:
            print(f"{entries[0]}: its processes have not ended yet")
            return 0
        time.sleep(1.0)
    (run / RECORD).unlink(missing_ok=True)
    return 0
