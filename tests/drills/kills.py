"""kill -9 at random moments of a run that saves every step; after each, the same command.

    python tests/drills/kills.py [--kills 50] [--seed 0]

Prints a line for each kill, and ends with an error if a torn checkpoint is ever published or loaded, a
published step is lost, or the losses are not those of a run that was never killed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs import Data, WarmJob, losses, metrics, succeed, write_recipe
from pictures import write_pictures

from pretrain.checkpoints.checkpoint import Checkpoint, complete

ENGINES = ("engine.kind=fsdp", "engine.kind=ddp", "engine.kind=deepspeed")


FAR = 1_000_000  # steps: more than the drill gets to
MORE = 20


def drill(folder: Path, kills: int, seed: int) -> None:
    """Kill a run under `folder` so often, then let it do MORE steps and end."""
    recipe = write_recipe(folder, pack(folder))
    common = (f"run.dir={folder}", "optim.schedule=constant", "optim.ema=0.9")
    settings = (*common, "run.name=killed", "checkpoint.every=1")
    random_moment = random.Random(seed)
    run = folder / "killed"
    published = 0
    for number in range(1, kills + 1):
        engine = ENGINES[number % len(ENGINES)]
        job = WarmJob(run, "pretrain", recipe, *settings, engine, f"train.steps={FAR}", processes=2)
        before = last_step(run)
        while last_step(run) <= before and job.process.poll() is None:
            time.sleep(0.01)
        time.sleep(random_moment.uniform(0.0, 0.5))
        if job.process.poll() is not None:
            raise SystemExit(f"the run ended by itself:\n{job.finish()[1]}")
        job.kill()
        published = check(run, published)
        print(f"kill {number}: {engine}, newest checkpoint {published}", flush=True)
    steps = published + MORE
    succeed("pretrain", recipe, *settings, f"train.steps={steps}", processes=2)
    succeed("pretrain", recipe, *common, "run.name=whole", f"train.steps={steps}", processes=2)
    wanted, found = losses(folder / "whole"), losses(run)
    assert list(found) == list(wanted), "a step is missing or stands twice"
    worst = max(abs(found[step] - wanted[step]) for step in wanted)
    assert worst < 1e-5, f"losses differ by {worst}"
    print(f"{kills} kills, {steps} steps, largest difference of a loss {worst:.1e}")


def pack(folder: Path) -> Data:
    for split, count in (("train", 97), ("val", 21)):
        write_pictures(folder / "images" / split, count, seed=count)
        succeed("data_tools", "pack", folder / "images" / split, folder / split)
    return Data(folder / "train", folder / "val", folder / "images/val")


def last_step(run: Path) -> int:
    return max((row["step"] for row in metrics(run)), default=0)


def check(run: Path, published: int) -> int:
    """The newest published checkpoint is whole and not older than the one seen before; returns its step."""
    found = complete(run / "checkpoints")
    if not found:
        return 0
    for path in found:
        Checkpoint(path).verify()
    latest = run / "checkpoints/latest"
    assert not latest.exists() or (run / "checkpoints" / latest.read_text().strip()) in found
    newest = Checkpoint(found[0]).step
    assert newest >= published, f"step {published} was published and is lost"
    return newest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill(Path(folder), given.kills, given.seed)


if __name__ == "__main__":
    main()
