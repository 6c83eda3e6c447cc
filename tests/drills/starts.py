"""Start and stop a run over and over, under every engine; every exit code must be right.

    python tests/drills/starts.py [--rounds 20]

Odd rounds are stopped by SIGTERM to one of the two processes: status.json says 75, torchrun exits with 1.
Even rounds end by themselves, after two more steps: both say 0. Losses must be those of a run never stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drills.kills import pack
from jobs import Data, Job, losses, metrics, status, succeed, write_recipe

ENGINES = {
    "ddp": ("engine.kind=ddp",),
    "fsdp": ("engine.kind=fsdp",),
    "zero-1": ("engine.kind=deepspeed", "engine.zero_stage=1"),
    "zero-2": ("engine.kind=deepspeed", "engine.zero_stage=2"),
    "zero-3": ("engine.kind=deepspeed", "engine.zero_stage=3"),
}


def drill(folder: Path, data: Data, engines: list[str], rounds: int) -> None:
    """`rounds` starts and stops under each of `engines`, in folders under `folder`."""
    recipe = write_recipe(folder, data)
    common = (recipe, f"run.dir={folder}", "optim.schedule=constant", "data.val=", "data.trace=false")
    for name in engines:
        began = time.perf_counter()
        run = folder / name
        for number in range(1, rounds + 1):
            stop = number % 2 == 1
            before = max((row["step"] for row in metrics(run)), default=0)
            steps = before + (10_000 if stop else 2)
            call = (*common, f"run.name={name}", *ENGINES[name], f"train.steps={steps}")
            job = Job(run, "pretrain", *call, processes=2)
            if stop:
                job.wait_for_step(before + 2)
                os.kill(job.workers()[1], signal.SIGTERM)
            code, output = job.finish()
            wanted = (1, 75) if stop else (0, 0)
            assert (code, status(run)["exit_code"]) == wanted, f"{name}, round {number}: {code}\n{output}"
        found = losses(run)
        print(
            f"{name}: {rounds} rounds, all exit codes right, {time.perf_counter() - began:.0f} s", flush=True
        )
        alone = (*common, f"run.name={name}-alone", "engine.kind=ddp", f"train.steps={max(found)}")
        succeed("pretrain", *alone)
        worst = max(abs(found[step] - loss) for step, loss in losses(folder / f"{name}-alone").items())
        assert worst < 1e-5, f"losses differ by {worst}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("engines", nargs="*", default=list(ENGINES), help="the engines (default: all)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill(Path(folder), pack(Path(folder)), given.engines, given.rounds)


if __name__ == "__main__":
    main()
