"""Signals at random moments: which one, how often in a row, and to whom are random too.

    python tests/drills/signals.py [--rounds 20] [--seed 0] [--compile]

Two FSDP processes under torchrun, evaluation and a checkpoint every few steps; after each stop the same
command. Ends with an error if status.json does not say within a second that the job is stopping, a checkpoint
does not hold the very step that the job ended at, or the losses are not those of a run that was left alone.
A second SIGINT ends a process at once. With --compile every life compiles anew, which most signals then meet.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drills.kills import pack
from jobs import Job, losses, metrics, status, succeed, write_recipe

from pretrain.checkpoints.checkpoint import complete

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def drill(folder: Path, rounds: int, seed: int, compiled: bool = False) -> None:
    """`rounds` stops of one run, each of which is gone on from, and then the run left alone."""
    recipe, run = write_recipe(folder, pack(folder)), folder / "stopped"
    settings = (f"run.dir={folder}", f"train.steps={60 * rounds}", "train.eval_every=4", "engine.kind=fsdp")
    settings += ("checkpoint.every=3", "data.trace=false")
    if compiled:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
        settings += ("engine.compile=true",)
    succeed("pretrain", recipe, *settings, "run.name=whole", processes=2)
    chance = random.Random(seed)
    for number in range(1, rounds + 1):
        job = Job(
            run, "pretrain", recipe, *settings, "run.name=stopped", "fault=slow:seconds=0.1", processes=2
        )
        job.wait_until(lambda job=job: len(job.workers()) == 2)
        began, wait = time.time(), chance.uniform(0.0, 12.0)
        time.sleep(wait)
        what, often = chance.choice(SIGNALS), chance.choice((1, 2, 4))
        whom = chance.choice(("a rank", "all ranks", "torchrun"))
        phase = current(run, began)
        send(job, whom, what, often, chance)
        slow = told_after(run) if phase and whom != "torchrun" else 0.0
        _, output = job.finish()
        ended = status(run) if (run / "status.json").exists() else {}
        print(
            f"stop {number}: {often} × {what.name} to {whom} after {wait:.1f} s in phase {phase}; said after "
            f"{slow:.2f} s; {ended.get('state')} at step {ended.get('step')}",
            flush=True,
        )
        assert slow < 1.0, f"status.json said so after {slow:.2f} s"
        if what == signal.SIGINT and often > 1:
            assert not phase or ended["state"] in ("stopped", "failed"), output
        elif phase and not (what == signal.SIGUSR1 and whom == "torchrun"):
            assert ended["state"] == "stopped", output
            assert complete(run / "checkpoints")[0].name == f"step-{ended['step']:08d}"
    succeed("pretrain", recipe, *settings, "run.name=stopped", processes=2)
    wanted, found = losses(folder / "whole"), losses(run)
    assert list(found) == list(wanted), "a step is missing or stands twice"
    worst = max(abs(found[step] - wanted[step]) for step in wanted)
    assert worst < 1e-5, f"losses differ by {worst}"
    evaluated = [row["step"] for row in metrics(run) if row.get("split") == "val"]
    assert evaluated == [row["step"] for row in metrics(folder / "whole") if row.get("split") == "val"]
    print(f"{rounds} stops, {len(wanted)} steps, each once; largest difference of a loss {worst:.1e}")


def current(run: Path, began: float) -> str | None:
    """The phase that this life of the run is in; None before its status.json speaks of it."""
    if not (run / "status.json").exists():
        return None
    now = status(run)
    return (
        now.get("phase", "start-up")
        if now["state"] in ("starting", "running") and now["time"] > began
        else None
    )


def send(job: Job, whom: str, what: signal.Signals, often: int, chance: random.Random) -> None:
    targets = [job.process.pid] if whom == "torchrun" else job.workers()
    for _ in range(often):
        for pid in targets[:1] if whom == "a rank" else targets:
            with suppress(ProcessLookupError):
                os.kill(pid, what)
        time.sleep(chance.uniform(0.0, 0.05))


def told_after(run: Path) -> float:
    """Seconds until status.json no longer says that the job goes on."""
    sent = time.monotonic()
    while status(run)["state"] in ("starting", "running") and time.monotonic() - sent < 10:
        time.sleep(0.005)
    return time.monotonic() - sent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill(Path(folder), given.rounds, given.seed, given.compile)


if __name__ == "__main__":
    main()
