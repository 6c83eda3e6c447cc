"""A job in a real SLURM cluster that is preempted twice, reaches its time limit and loses a node; one that
is preempted at random moments.

    python tests/drills/survive.py [--preemptions 20] [--seed 0] [--only lives|random|neighbours]

Needs root and the cluster of the reference data (it installs slurm-wlm and munge). Prints what happens, and
ends with an error if a step is missing or stands twice, a loss differs from the undisturbed run by 1e-5, a
step is lost to a preemption, or the W&B run changes.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drills.kills import pack
from jobs import losses, metrics, rows, status, succeed, write_recipe
from slurm_box import BOX, QueuedJob, call, cluster

from launch.slurm.address import LOW

EVERY = 5


def queue(folder: Path, recipe: Path, name: str, *arguments: object) -> QueuedJob:
    site = folder / "site.yaml"
    site.write_text("save_seconds: 30\n")
    launch = ("--gpus-per-node", 2, "--partition", "preempt", "--cluster", site)
    return QueuedJob(folder / name, recipe, *launch, f"run.dir={folder}", f"run.name={name}", *arguments)


def four_blows(folder: Path, recipe: Path, settings: tuple[str, ...]) -> None:
    """Two preemptions, a time limit and a lost node in 60 steps on 2 × 2 processes."""
    own = ("engine.kind=fsdp", "tracking.wandb=offline", "fault=slow:rank=0:seconds=1.5")
    job = queue(folder, recipe, "blows", "--nodes", 2, "--time", 20, *settings, *own)
    began = time.monotonic()
    for restart, step in ((1, 8), (2, 18)):
        job.wait_for_step(step)
        say(began, f"step {job.step}: preempted")
        job.preempt()
        job.wait_for_restart(restart)
        assert len(stopped(job)) == restart, job.output[-3000:]
    job.wait_for_step(28)
    minutes = int(re.sub(r"\D", "", job.field("RunTime").rpartition(":")[0]) or 0)
    call("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes + 1}")
    say(began, f"step {job.step}: time limit within a minute")
    job.wait_for_restart(3)
    call("scontrol", "update", f"JobId={job.id}", "TimeLimit=20")
    job.wait_for_step(job.step + 7)
    at = job.step
    say(began, f"step {at}: power off for node2")
    call(BOX, "kill-node", "node2")
    job.wait_for_restart(4)
    call(BOX, "start-node", "node2")
    job.wait_until(lambda: job.state == "COMPLETED")
    resumed = [int(step) for step in re.findall(r"resumed from .*: step (\d+)", job.output)]
    say(began, f"over; resumed at {resumed}")
    compare(folder / "whole", folder / "blows")
    check_lives(job)
    assert at - resumed[3] <= EVERY + 1, f"step {at} was reached, {resumed[3]} was resumed"
    runs = {file.stem for file in (folder / "blows/wandb").glob("offline-run-*/run-*.wandb")}
    assert runs == {f"run-{status(folder / 'blows')['wandb_id']}"}, runs
    print(f"lost: 0 steps to the preemptions and the time limit, {at - resumed[3]} to the node")


def random_preemptions(folder: Path, recipe: Path, settings: tuple[str, ...], count: int, seed: int) -> None:
    """`count` preemptions at moments from the first second of a life on; evaluation every 3 steps."""
    own = ("engine.kind=fsdp", "train.eval_every=3", "fault=slow:rank=0:seconds=0.5")
    job = queue(folder, recipe, "random", "--nodes", 2, "--time", 60, *settings, *own)
    moment, began = random.Random(seed), time.monotonic()
    for number in range(1, count + 1):
        job.wait_until(lambda: job.state == "RUNNING")
        wait = moment.uniform(0.0, 20.0)
        time.sleep(wait)
        if job.state == "COMPLETED":
            raise SystemExit("the run ended before it was preempted often enough: give more steps")
        state = status(folder / "random").get("phase") if (folder / "random/status.json").exists() else None
        say(began, f"preemption {number}, {wait:.1f} s into its life, step {job.step}, {state}")
        job.preempt()
        job.wait_for_restart(number)
    job.wait_until(lambda: job.state == "COMPLETED", timeout=900)
    compare(folder / "whole", folder / "random")
    check_lives(job)
    evaluated = [row["step"] for row in metrics(folder / "random") if row.get("split") == "val"]
    assert len(evaluated) == len(set(evaluated)), evaluated
    assert status(folder / "random")["restart"] == count
    print(f"{count} preemptions, {count} resumes")


def neighbours(folder: Path, recipe: Path, settings: tuple[str, ...]) -> None:
    """Two jobs at once on the same nodes, the second's port taken, and one whose first node is drained."""
    own = ("--nodes", 2, *settings, "fault=slow:seconds=0.5")
    first = queue(folder, recipe, "first", *own)
    with ExitStack() as stack:
        for port in (LOW + int(first.id) + 1, LOW + int(first.id) + 2):
            taken = stack.enter_context(socket.socket())
            taken.bind(("", port))
            taken.listen()
        second = queue(folder, recipe, "second", *own)
        for job in (first, second):
            job.wait_until(lambda job=job: job.state == "COMPLETED")
    call("scontrol", "update", "nodename=node1", "state=drain", "reason=drill")
    try:
        third = queue(folder, recipe, "third", "--nodes", 1, *settings)
        third.wait_until(lambda: third.state == "COMPLETED")
    finally:
        call("scontrol", "update", "nodename=node1", "state=resume")
    assert status(folder / "third")["host"] == "node2"
    for name in ("first", "second", "third"):
        compare(folder / "whole", folder / name)


def check_lives(job: QueuedJob) -> None:
    """No life failed but for a lost node, and those that a signal ended saved the very step they ended at."""
    for life in stopped(job):
        at = re.search(r"at step (\d+)", life["reason"])
        assert at is None or int(at[1]) == life["checkpoint"], life


def stopped(job: QueuedJob) -> list[dict[str, Any]]:
    return [life for life in rows(job.folder / "slurm/lives.jsonl") if life["state"] == "stopped"]


def compare(wanted: Path, found: Path) -> None:
    first, second = losses(wanted), losses(found)
    assert list(second) == list(first), "a step is missing or stands twice"
    worst = max(abs(first[step] - second[step]) for step in first)
    assert worst < 1e-5, f"losses differ by {worst}"
    print(f"{len(first)} steps, each once; largest difference of a loss {worst:.1e}")


def say(began: float, text: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preemptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["lives", "random", "neighbours"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, cluster():
        folder = Path(name)
        recipe = write_recipe(folder, pack(folder))
        for steps, part in ((60, "lives"), (12 * given.preemptions, "random"), (10, "neighbours")):
            if given.only in (None, part):
                settings = (f"train.steps={steps}", f"checkpoint.every={EVERY}", "data.trace=false")
                # Undisturbed, and outside SLURM.
                succeed("pretrain", recipe, *settings, f"run.dir={folder}", f"run.name=whole-{part}")
                (folder / "whole").unlink(missing_ok=True)
                (folder / "whole").symlink_to(folder / f"whole-{part}")
                if part == "lives":
                    four_blows(folder, recipe, settings)
                elif part == "neighbours":
                    neighbours(folder, recipe, settings)
                else:
                    random_preemptions(folder, recipe, settings, given.preemptions, given.seed)


if __name__ == "__main__":
    main()
