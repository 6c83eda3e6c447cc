"""All steps on handwritten digits: shards, pretraining that is stopped and resumed, fine-tuning at a higher
resolution, accuracy. Run by launch/quickstart.sh; every command that it runs is printed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_tools.errors import Parser, UsageError, run_command

from .digits import write_digits

PROCESSES = 2
DATA = Path("runs/quickstart-data")
PRETRAIN, FINETUNE = Path("runs/quickstart"), Path("runs/quickstart_finetune")

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; what an earlier call has finished is not repeated. Returns the exit code."""
    parser = Parser(prog="bash launch/quickstart.sh", description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="first remove what an earlier quickstart left")
    given = parser.parse_args(arguments)
    if given.fresh:
        for folder in (DATA, PRETRAIN, FINETUNE):
            shutil.rmtree(folder, ignore_errors=True)
    began = time.time()
    prepare_data()
    pretrain()
    finetune()
    evaluated = run("-m", "finetune", "evaluate", str(FINETUNE), str(DATA / "shards/val"), quiet=True)
    console.print(evaluated.strip())
    accuracy = json.loads(evaluated)
    images = sorted((DATA / "images/val").glob("*/*.png"))[::431]
    run("-m", "finetune", "predict", str(FINETUNE), *map(str, images))
    summarise(accuracy, time.time() - began)
    return 0


def prepare_data() -> None:
    """Write the pictures, and pack them into DATA/shards/train and DATA/shards/val."""
    console.rule("1. data: handwritten digits in many shapes, packed into shards")
    images, shards = DATA / "images", DATA / "shards"
    if not shards.exists():
        write_digits(images)
    for split in ("train", "val"):
        run("-m", "data_tools", "pack", str(images / split), str(shards / split), "--shard-size", "1MB")


def pretrain() -> None:
    """Pretrain; a run that has not begun is stopped half-way and resumed."""
    console.rule(f"2. pretraining: MLP head, {PROCESSES} FSDP processes, stopped half-way")
    command = torchrun("pretrain", "configs/quickstart.yaml")
    if status(PRETRAIN).get("state") is None:
        stop_half_way(command)
        console.print("[bold]the same command again goes on from the checkpoint[/bold]")
    run(*command)


def stop_half_way(command: list[str]) -> None:
    """Start `command` and send SIGTERM to one of its processes when half of the steps are done."""
    console.print(f"$ python {shlex.join(command)}", style="bold cyan", soft_wrap=True)
    # torchrun prints a long report of a failure even for a stop; status.json has how the job really ended.
    messages = DATA / "torchrun.log"
    with messages.open("w", encoding="utf-8") as errors:
        job = subprocess.Popen([sys.executable, *command], env=environment(), stderr=errors)
    while job.poll() is None:
        now = status(PRETRAIN)
        if now.get("state") == "running" and now["step"] * 2 >= now["steps"]:
            console.print(f"[bold]SIGTERM to process {now['pid']} at step {now['step']}[/bold]")
            os.kill(now["pid"], signal.SIGTERM)
            job.wait()
            break
        time.sleep(0.1)
    if status(PRETRAIN).get("exit_code") not in (0, 75):
        raise UsageError(f"the pretraining failed: see {messages}")


def finetune() -> None:
    """Fine-tune the pretrained run."""
    console.rule("3. fine-tuning: linear head, tiles of 24 instead of 16 pixels")
    run(*torchrun("finetune", "configs/quickstart_finetune.yaml", f"init={PRETRAIN}"))


def torchrun(module: str, *arguments: str) -> list[str]:
    """What stands behind `python` to run a module by torchrun with PROCESSES processes."""
    return [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={PROCESSES}",
        "-m",
        module,
        *arguments,
    ]


def run(*command: str, quiet: bool = False) -> str:
    """Print and run a Python command. Raises UsageError when it fails.

    quiet: return its output instead of showing it; otherwise "" is returned.
    """
    console.print(f"$ python {shlex.join(command)}", style="bold cyan", soft_wrap=True)
    capture = subprocess.PIPE if quiet else None
    done = subprocess.run([sys.executable, *command], env=environment(), stdout=capture, encoding="utf-8")
    if done.returncode:
        raise UsageError(f"this step of the quickstart ended with exit code {done.returncode}")
    return done.stdout or ""


def environment() -> dict[str, str]:
    """The environment of all commands: no GPU, as a machine may have fewer than PROCESSES; and one computing
    thread a process, as processes and loader threads share the cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}


def status(run_folder: Path) -> dict[str, Any]:
    """The run's status.json; {} if it has not begun."""
    try:
        return json.loads((run_folder / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}


def rows(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of the run's metrics.jsonl."""
    return [
        json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def summarise(accuracy: dict[str, Any], seconds: float) -> None:
    """Print a table of both runs. accuracy: of the fine-tuned one, as `finetune evaluate` prints it."""
    console.rule("done")
    table = Table(title="quickstart", show_header=False)
    training = [row for row in rows(PRETRAIN) if "split" not in row]
    speeds = sorted(row["images_per_s"] for row in training)
    seen = training[-1]["images"] + rows(FINETUNE)[-2]["images"]
    for name, value in (
        ("images seen", f"{seen:,}"),
        ("images/s, pretraining", f"{speeds[len(speeds) // 2]:.0f}"),
        ("tiles per image", f"{training[-1]['tiles_per_image']:.2f} of at most 4"),
        ("top-1 after pretraining", f"{rows(PRETRAIN)[-1]['top1']:.2%}"),
        ("top-1 after fine-tuning", f"{accuracy['top1']:.2%} on {accuracy['n']} held-out images"),
        ("run folders", f"{PRETRAIN}, {FINETUNE}"),
        ("reports", f"{PRETRAIN / 'report.html'}, {FINETUNE / 'report.html'}"),
        ("time", f"{seconds:.0f} s"),
    ):
        table.add_row(name, value)
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_command(main))
