"""What becomes of a SLURM job whose processes have ended: its script calls this module with RUN and CODE.

Exits with 75 where the job is to be requeued, otherwise with the code that the job ends with. Says why, and
for a failure ends with its traceback. Each life is noted in RUN/slurm/lives.jsonl. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.run.folder import GOING_ON, RunFolder, read_rows

QUEUED = "slurm/queued"  # in a run folder: the id of the job that was queued last
STOPPED = 75
WILL_REPEAT = {2: "configuration", 3: "data", 4: "divergence"}
GOES_ON = ("RUNNING", "SIGNALING")


@dataclass(frozen=True)
class Fate:
    """What SLURM does with the job, whatever becomes of its processes."""

    preempts: bool = False
    ends: bool = False  # cancelled, requeued by someone, a node lost
    again: bool = False  # and another life follows


@dataclass(frozen=True)
class Life:
    """One life of a job, as its batch script sees it end."""

    job: str
    restart: int
    code: int  # what the run itself says where it can, otherwise srun
    state: str
    signal: str | None
    checkpoint: int  # step of the newest one, 0 for none
    forced: bool  # SLURM ended it
    reason: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.requeue", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("code", type=int, help="exit code of srun")
    parser.add_argument("--max-restarts", type=int, default=3)
    given = parser.parse_args()
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    folder = RunFolder(given.run)
    status = folder.status()
    begun = speaks_of(status, job, restart)
    if not begun:
        status = folder.refusal() if speaks_of(folder.refusal(), job, restart) else {}
    fate = ask_slurm(job, restart)
    life = judge(status, given.code, job, restart, newest_checkpoint(folder), fate)
    if begun and status["state"] in GOING_ON:
        folder.set_failed(exit_code=life.code, reason=life.reason, rank=None)
    earlier = list(read_rows(given.run / "slurm/lives.jsonl"))
    code, sentence = decide([*earlier, asdict(life)], given.max_restarts, fate)
    requeued = code == STOPPED or fate.again
    (given.run / "slurm").mkdir(parents=True, exist_ok=True)
    with (given.run / "slurm/lives.jsonl").open("a") as stream:
        stream.write(json.dumps(asdict(life) | {"time": time.time(), "requeued": requeued}) + "\n")
    print(f"job {job}, life {restart + 1}: {life.reason}; {sentence}", flush=True)
    if status.get("traceback") and life.state == "failed":
        print(f"rank {status['rank']} on {status['host']}:\n{status['traceback']}", flush=True)
    return code


def speaks_of(status: dict[str, Any], job: str, restart: int) -> bool:
    return (status.get("job"), status.get("restart")) == (job, restart)


def judge(status: dict[str, Any], code: int, job: str, restart: int, checkpoint: int, fate: Fate) -> Life:
    """What happened. status: what the run says of this life, if anything; code: srun's.

    Where one task fails, srun ends the others by SIGTERM and answers with the highest code: 75 alone does not
    say that the job was asked to stop.
    """
    state = status.get("state", "")
    signal = status.get("signal")
    if state in ("done", "stopped", "failed"):
        code = status["exit_code"]
        reason = {
            "done": "finished",
            "stopped": f"stopped by {signal or 'a signal'} at step {status.get('step')}, checkpoint saved",
            "failed": f"failed: {status.get('reason')}",
        }[state]
    elif code == 0:
        state, reason = "done", "nothing left to do"
    elif not state and (fate.preempts or fate.ends):
        state, code, reason = "stopped", STOPPED, "stopped before it began"
    else:
        state = "failed"
        reason = f"the processes ended without a word (srun: exit code {code})"
        code = code if not status and code in WILL_REPEAT else 1
    return Life(job, restart, code, state, signal, checkpoint, fate.preempts or fate.ends, reason)


def decide(lives: list[dict[str, Any]], max_restarts: int, fate: Fate) -> tuple[int, str]:
    """(code, sentence). The last of `lives` is the one that has just ended."""
    last = lives[-1]
    if last["state"] == "done":
        return 0, "the job is over"
    if last["code"] in WILL_REPEAT:
        return last["code"], f"not requeued, as it would repeat ({WILL_REPEAT[last['code']]})"
    if fate.ends:
        what = "requeued by Slurm" if fate.again else "Slurm ends the job"
        return last["code"] if last["code"] != STOPPED else 143, what
    in_vain = restarts_in_vain(lives)
    if in_vain >= max_restarts:
        return 1, (
            f"not requeued: {in_vain} restarts in a row brought no newer checkpoint than step "
            f"{last['checkpoint']} (launch.max_restarts={max_restarts})"
        )
    return STOPPED, "requeued"


def restarts_in_vain(lives: list[dict[str, Any]]) -> int:
    """How many restarts of this job, up to the last, brought no newer checkpoint than there was.

    One that SLURM ended does not count, however early that came.
    """
    mine = [life for life in lives if life["job"] == lives[-1]["job"]]
    count = 0
    for before, life in zip(mine[-2::-1], mine[:0:-1], strict=True):
        if life["checkpoint"] > before["checkpoint"]:
            break
        count += not life["forced"]
    return count


def newest_checkpoint(folder: RunFolder) -> int:
    names = [path.name for path in folder.checkpoints.glob("step-*")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=0)


def ask_slurm(job: str, restart: int) -> Fate:
    done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True)
    return read_fate(done.stdout, restart)


def read_fate(answer: str, restart: int) -> Fate:
    """From what `scontrol show job` says in life `restart`. At its time limit a job may go on."""
    fields = dict(re.findall(r"(\S+?)=(\S*)", answer))
    if not fields:
        return Fate()
    limit = fields.get("TimeLimit", "UNLIMITED")
    in_time = limit == "UNLIMITED" or seconds(fields["RunTime"]) < seconds(limit)
    return Fate(
        preempts=fields.get("PreemptTime", "None") != "None",
        ends=fields["JobState"] not in GOES_ON and in_time,
        again=int(fields["Restarts"]) > restart,
    )


def seconds(text: str) -> int:
    """SLURM's [days-]hours:minutes:seconds."""
    days, _, clock = text.rpartition("-")
    hours, minutes, rest = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


if __name__ == "__main__":
    sys.exit(main())
