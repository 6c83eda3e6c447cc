"""How a run stands, from its folder alone: on any node that sees it, while it runs and after."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.errors import UsageError
from pretrain.run_folder import GOING_ON, RunFolder

SILENT = 30.0  # status.json is written every 5 s while the job lives
STALLED_STEPS = 20.0  # as many times the usual time of a step
STALLED = 60.0


def main(arguments: Sequence[str]) -> int:
    """0; 1 for a run that failed, is stalled or gone."""
    parser = argparse.ArgumentParser(
        prog="python -m launch status",
        description="How a run stands, from its folder alone. Exit code 1: failed, stalled or gone.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--follow", action="store_true", help="a line whenever something changes, to its end")
    given = parser.parse_args(arguments)
    folder = RunFolder(given.run)
    last = None
    while True:
        status = folder.status()
        if not status and not (given.run / "slurm").is_dir():
            raise UsageError(f"{given.run}: not a run folder: it has no status.json")
        text, good = describe(folder, status, time.time())
        if text.splitlines()[0] != last:
            print(text, flush=True)
            last = text.splitlines()[0]
        if not given.follow or (status.get("state") in ("done", "failed") and not going_on_later(given.run)):
            return 0 if good else 1
        time.sleep(1.0)


def describe(folder: RunFolder, status: dict[str, Any], now: float) -> tuple[str, bool]:
    """(text, whether all is well)."""
    if not status:
        return f"{folder.path}: queued, has not begun", True
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
    parts = [f"{folder.path}: {trouble or state}", f"step {status.get('step', 0)}/{status.get('steps', '?')}"]
    if status.get("loss") is not None:
        parts.append(f"loss {status['loss']:.4f}")
    if status.get("images_per_s"):
        parts.append(f"img/s {status['images_per_s']:.0f}")
    if state == "running" and status.get("seconds_left") is not None:
        parts.append(f"eta {duration(status['seconds_left'])}")
    details = [
        _checkpoint(folder, now),
        f"processes {status.get('processes', '?')} from {status.get('host')}",
    ]
    if status.get("job"):
        details.append(f"SLURM job {status['job']}, restarts {status.get('restart', 0)}")
    return "  ".join(parts) + "\n  " + " · ".join(details), not trouble


def _checkpoint(folder: RunFolder, now: float) -> str:
    try:
        name = (folder.checkpoints / "latest").read_text().strip()
        age = now - (folder.checkpoints / name).stat().st_mtime
    except OSError:
        return "no checkpoint yet"
    return f"checkpoint {name}, {duration(age)} ago"


def going_on_later(run: Path) -> bool:
    """Whether the last life of its SLURM job was requeued, so that another follows."""
    lives = run / "slurm/lives.jsonl"
    return lives.exists() and bool(json.loads(lives.read_text().splitlines()[-1]).get("requeued"))


def duration(value: float) -> str:
    minutes, rest = divmod(max(0, int(value)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
