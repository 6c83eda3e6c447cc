"""Whether a SLURM job is requeued: when its processes have ended, its script calls this with RUN and CODE.

A job that is requeued runs several times under one id; each time is called a life. The exit code is 75 if the
job is to be requeued, otherwise the one that the job ends with. Prints why, and the traceback of a failure.
Each life becomes a row of RUN/slurm/lives.jsonl. Needs nothing but Python.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data_tools.errors import Parser, UserError, print_line, retrying, run_command
from pretrain.run.files import append_rows, read_rows
from pretrain.run.folder import GOING_ON, RunFolder

from .queue import ask

STOPPED = 75
WILL_REPEAT = {2: "configuration", 3: "data", 4: "divergence"}
GOES_ON = ("RUNNING", "SIGNALING")


@dataclass(frozen=True)
class SlurmAction:
    """What SLURM itself does with the job, whatever its processes do."""

    preempts: bool = False
    ends: bool = False  # the job was cancelled, requeued by somebody, or lost a node
    requeues: bool = False  # SLURM has requeued it already


@dataclass(frozen=True)
class Life:
    """One life of a job, as its batch script sees it after its end."""

    job: str
    restart: int
    code: int  # the run's own if it wrote one, otherwise from srun's
    state: str
    signal: str | None
    checkpoint: int  # the step of the newest one, 0 without any
    forced: bool  # SLURM ended it
    reason: str


LIFE = (*(field.name for field in fields(Life)), "time", "requeued")  # what a row of lives.jsonl has


def main() -> int:
    """Decide, write the life down, and return the exit code: 75 to requeue the job."""
    parser = Parser(prog="python -m launch.slurm.requeue", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("code", type=int, help="exit code of srun")
    parser.add_argument("--max-restarts", type=int, default=3)
    given = parser.parse_args()
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    folder = RunFolder(given.run)
    status = folder.status()
    begun = is_about(status, job, restart)
    if not begun:
        status = folder.refusal() if is_about(folder.refusal(), job, restart) else {}
    action = ask_slurm(job, restart)
    life = ended_life(status, given.code, job, restart, newest_checkpoint(folder), action)
    if begun and status["state"] in GOING_ON:
        folder.set_failed(exit_code=life.code, reason=life.reason, rank=None)
    lives = given.run / "slurm/lives.jsonl"
    earlier = read_rows(lives, *LIFE)
    code, sentence = decide([*earlier, asdict(life)], given.max_restarts, action)
    requeued = code == STOPPED or action.requeues
    row = asdict(life) | {"time": time.time(), "requeued": requeued}
    folder.write(lives, lambda: append_rows(lives, [row]))
    print_line(f"job {job}, life {restart + 1}: {life.reason}; {sentence}")
    if status.get("traceback") and life.state == "failed":
        print_line(f"rank {status['rank']} on {status['host']}:\n  {status['traceback']}")
    return code


def is_about(status: dict[str, Any], job: str, restart: int) -> bool:
    """Whether `status` was written in this life of this job."""
    return (status.get("job"), status.get("restart")) == (job, restart)


def ended_life(
    status: dict[str, Any], code: int, job: str, restart: int, checkpoint: int, action: SlurmAction
) -> Life:
    """The life that has just ended. status: the run's status.json of this life, or {}; code: srun's.

    If one task fails, srun ends the others by SIGTERM and returns the highest code of all: 75 from srun alone
    does not mean that the job was asked to stop.
    """
    state = status.get("state", "")
    signal = status.get("signal")
    if state in ("done", "stopped", "failed"):
        code = status.get("exit_code", code)
        reason = {
            "done": "finished",
            "stopped": f"stopped by {signal or 'a signal'} at step {status.get('step')}, checkpoint saved",
            "failed": f"failed: {status.get('reason')}",
        }[state]
    elif code == 0:
        state, reason = "done", "nothing left to do"
    elif not state and (action.preempts or action.ends):
        state, code, reason = "stopped", STOPPED, "stopped before it began"
    else:
        state = "failed"
        reason = f"the processes ended without writing a status (srun exit code {code})"
        code = code if not status and code in WILL_REPEAT else 1
    return Life(job, restart, code, state, signal, checkpoint, action.preempts or action.ends, reason)


def decide(lives: list[dict[str, Any]], max_restarts: int, action: SlurmAction) -> tuple[int, str]:
    """(exit code, what is decided and why). The last of `lives` is the one that has just ended."""
    last = lives[-1]
    if last["state"] == "done":
        return 0, "the job is over"
    if last["code"] in WILL_REPEAT:
        return last["code"], f"not requeued, as it would repeat ({WILL_REPEAT[last['code']]})"
    if action.ends:
        what = "requeued by Slurm" if action.requeues else "Slurm ends the job"
        return last["code"] if last["code"] != STOPPED else 143, what
    useless = restarts_without_progress(lives)
    if useless >= max_restarts:
        return 1, (
            f"not requeued: {useless} restarts in a row brought no newer checkpoint than step "
            f"{last['checkpoint']} (launch.max_restarts={max_restarts})"
        )
    return STOPPED, "requeued"


def restarts_without_progress(lives: list[dict[str, Any]]) -> int:
    """How many of this job's last restarts in a row saved no newer checkpoint than the life before.

    A life that SLURM ended is not counted, however short it was.
    """
    mine = [life for life in lives if life["job"] == lives[-1]["job"]]
    count = 0
    for before, life in zip(mine[-2::-1], mine[:0:-1], strict=True):
        if life["checkpoint"] > before["checkpoint"]:
            break
        count += not life["forced"]
    return count


def newest_checkpoint(folder: RunFolder) -> int:
    """The highest step among the names of the checkpoints; 0 without any."""
    names = [path.name for path in retrying(lambda: list(folder.checkpoints.glob("step-*")))]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=0)


def ask_slurm(job: str, restart: int) -> SlurmAction:
    """What `scontrol show job` says, called in life `restart` of the job (0 is the first)."""
    try:
        return read_action(ask("scontrol", "show", "job", "-o", job).stdout, restart)
    except UserError:
        return SlurmAction()


def read_action(answer: str, restart: int) -> SlurmAction:
    """The answer of `scontrol show job` in life `restart`.

    A job that SLURM ends at its time limit does not count as ended by SLURM: it may be requeued.
    """
    facts = dict(re.findall(r"(\S+?)=(\S*)", answer))
    if not facts:
        return SlurmAction()
    limit = facts.get("TimeLimit", "UNLIMITED")
    in_time = seconds(facts.get("RunTime", "0")) < seconds(limit)
    return SlurmAction(
        preempts=facts.get("PreemptTime", "None") != "None",
        ends=facts["JobState"] not in GOES_ON and in_time,
        requeues=int(facts["Restarts"]) > restart,
    )


def seconds(text: str) -> float:
    """A time as SLURM writes and reads it, in seconds.

    text: minutes, minutes:seconds, hours:minutes:seconds, or days- and hours, hours:minutes or all three; or
    UNLIMITED or 0, which is the same. Raises ValueError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "0"):
        return math.inf
    if not re.fullmatch(r"([0-9]+-[0-9]+|[0-9]+)(:[0-9]+){0,2}", text):
        raise ValueError(text)
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


if __name__ == "__main__":
    sys.exit(run_command(main))
