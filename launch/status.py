"""The state of a run, from its folder alone: on any machine that has the folder, while it runs and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import Parser, UsageError, print_result
from pretrain.run.files import read_rows
from pretrain.run.folder import GOING_ON, RunFolder

from .slurm.queue import RECORD, SCRIPT, SILENT, Entry, in_queue, recorded

STALLED_STEPS = 20.0  # step times without a new step; at least STALLED seconds
STALLED = 60.0  # s
TOLD = ("job", "restart", "state", "code", "reason", "time", "requeued")  # of a life
GONE = " is no longer in the queue, and wrote no status"


def main(arguments: Sequence[str]) -> int:
    """Print the state of a run, or of all in a folder; 1 if one failed, is stalled or gone, else 0."""
    parser = Parser(
        prog="python -m launch status",
        description="How a run stands, from its folder alone. Exit code 1: failed, stalled or gone.",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run folder, or a folder of runs: a line for each"
    )
    parser.add_argument("--follow", action="store_true", help="print a line at every change, to the end")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.run)
    told = None
    while True:
        if not is_run(given.run):
            runs = sorted(path for path in given.run.glob("*") if is_run(path))
            if not runs or given.follow:
                what = "a folder of runs, and --follow is for one run" if runs else "it has no status.json"
                raise UsageError(f"{given.run}: not a run folder: {what}")
            return print_table(runs)
        found = look(folder)
        text, good = describe(folder, found, time.time())
        if text.splitlines()[0] != told:
            print_result(text)
            told = text.splitlines()[0]
        if not given.follow or found.is_over(time.time()):
            return 0 if good else 1
        time.sleep(20.0 if found.waiting else 1.0)


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run that has begun or was queued."""
    return any((path / name).exists() for name in ("status.json", RECORD, SCRIPT))


def print_table(runs: Sequence[Path]) -> int:
    """Print a line for each run; returns 1 if one failed, is stalled or gone, otherwise 0."""
    rows, all_good = [], True
    for run, entries in in_queue(runs).items():
        found = look(RunFolder(run), entries)
        (state, *figures), good = summary(found, time.time())
        to_come = f"; {found.waiting}" if found.status and found.waiting else ""
        rows.append([run.name, *figures, state + to_come])
        all_good &= good
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print_result(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip()
        )
    return 0 if all_good else 1


@dataclass(frozen=True)
class Standing:
    """The state of a run. A SLURM job that is requeued runs several times; each time is called a life.

    status: of the last life, from status.json, or from lives.jsonl if it ended before it wrote one.
    requeued: whether another life follows; None if the batch script has not decided yet. waiting: a sentence
    about a job that was queued after that life, or "". unreadable: there is a status.json, or checkpoints,
    but no status that a run wrote.
    """

    status: dict[str, Any]
    requeued: bool | None = None
    waiting: str = ""
    unreadable: bool = False

    def is_over(self, now: float) -> bool:
        """Whether the run will not go on. now: seconds since 1970."""
        if self.waiting:
            return self.waiting.endswith(GONE)
        if self.requeued is not None:
            return not self.requeued
        if not self.status:
            return True
        ended = self.status.get("state") in ("done", "failed", "stopped")
        # The batch script of a SLURM job may still requeue it; it has SILENT seconds to write that down.
        return ended and (not self.status.get("job") or now - self.status["time"] > SILENT)


def look(folder: RunFolder, entries: list[Entry] | None = None) -> Standing:
    """Read the state from status.json, slurm/lives.jsonl, slurm/queued and SLURM's queue, if there is one.

    entries: its jobs in the queue, if SLURM was asked for several runs at once.
    """
    status = folder.status()
    life: dict[str, Any] = [{}, *read_rows(folder.path / "slurm/lives.jsonl", *TOLD)][-1]
    same = all(life.get(key) == status.get(key) for key in ("job", "restart"))
    requeued = None
    if life and (same or life["time"] >= status.get("time", 0.0)):
        requeued = life["requeued"]
        if not same:
            facts = {key: life[key] for key in ("state", "job", "restart")}
            reason = life["reason"].removeprefix("failed: ")
            status = status | facts | {"exit_code": life["code"], "reason": reason, "rank": None}
    waiting = _waiting(folder.path, status, requeued, entries)
    if requeued and waiting.endswith(GONE):  # it was cancelled before it began again
        requeued, waiting = False, ""
    lost = not status and (folder.status_file.exists() or (folder.checkpoints / "latest").exists())
    return Standing(status, requeued, waiting, lost)


def _waiting(run: Path, status: dict[str, Any], requeued: bool | None, entries: list[Entry] | None) -> str:
    """A sentence about the jobs of the run that are to begin, or to begin again; "" if there is none."""
    jobs, last = recorded(run), status.get("job")
    alive = status.get("state") in GOING_ON and time.time() - status["time"] < SILENT
    if not jobs or (jobs == [last] and (alive or requeued is False)):
        return ""
    entries = in_queue([run])[run] if entries is None else entries
    at_work = ("RUNNING", "COMPLETING", "")
    to_come = [str(entry) for entry in entries if entry.job != last or entry.state not in at_work]
    # A start that nobody queued, later than the job that was queued last, says nothing about that job.
    began = status.get("time", 0.0) > (run / RECORD).stat().st_mtime if jobs[-1] != last else not requeued
    gone = "" if entries or began else f"SLURM job {jobs[-1]}{GONE}"
    return ", ".join(to_come) or gone


def describe(folder: RunFolder, found: Standing, now: float) -> tuple[str, bool]:
    """(two lines of text, whether all is well). now: seconds since 1970."""
    status = found.status
    cells, good = summary(found, now)
    head = f"{folder.path}: {'  '.join(filter(None, cells))}"
    if not status and not found.unreadable:
        return head, good
    details = [_checkpoint(folder, now)]
    if "processes" in status:
        details.append(f"processes {status['processes']} from {status.get('host')}")
    if status.get("job"):
        details.append(f"SLURM job {status['job']}, restarts {status.get('restart', 0)}")
    if found.waiting:
        details.append(found.waiting)
    return head + "\n  " + " · ".join(details), good


def summary(found: Standing, now: float) -> tuple[list[str], bool]:
    """([state, step, loss, speed, time left], whether all is well); what is not known is "".

    now: seconds since 1970.
    """
    status = found.status
    if found.unreadable:
        return ["unknown: status.json cannot be read; the next start writes it anew", "", "", "", ""], False
    if not status:
        return [found.waiting or "has not begun", "", "", "", ""], not found.waiting.endswith(GONE)
    state, trouble = status["state"], ""
    if state in GOING_ON:
        silent, idle = now - status["time"], now - status.get("step_time", status["time"])
        usual = status.get("seconds_left", 0.0) / max(1, status.get("steps", 0) - status.get("step", 0))
        if silent > SILENT and found.waiting and not found.waiting.endswith(GONE):
            state = "interrupted"
        elif silent > SILENT:
            trouble = f"gone: no sign of life for {duration(silent)}"
        elif state == "running" and idle > max(STALLED, STALLED_STEPS * usual):
            trouble = f"stalled: no step for {duration(idle)}, in phase {status.get('phase')}"
    elif state == "failed":
        where = f" (rank {status['rank']})" if status.get("rank") is not None else ""
        trouble = f"failed, exit code {status.get('exit_code')}{where}: {status.get('reason')}"
    left = status.get("seconds_left") if state == "running" else None
    cells = [
        f"{trouble or state}{', requeued' if found.requeued else ''}",
        f"step {status.get('step', 0)}/{status.get('steps', '?')}",
        f"loss {status['loss']:.4f}" if status.get("loss") is not None else "",
        f"img/s {status['images_per_s']:.0f}" if status.get("images_per_s") else "",
        f"eta {duration(left)}" if left is not None else "",
    ]
    return cells, not trouble


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
