"""Running the commands as users do: real processes, torchrun, gloo.

A command without torchrun, and what only has to succeed, begins with its imports done (see warm.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm import WarmWorkers, run_warm, start_warm, wait_warm

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 400
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")

RECIPE = """
data: {{train: {train}, val: {val}, tile_size: 16, max_tiles: 4, workers: 1, trace: true,
       augment: {{crop_scale: [0.7, 1.0], flip: true}}}}
model: {{name: vit_ti16, patch_size: 4, embed_dim: 24, num_layers: 2, num_heads: 2, mlp_dim: 48}}
optim: {{lr: 3.0e-3, weight_decay: 0.1, warmup_steps: 5, clip_norm: 0.5}}
train: {{steps: 50, batch_size: 12, log_every: 1}}
engine: {{kind: ddp, precision: fp32}}
checkpoint: {{every: 5}}
tracking: {{wandb: disabled}}
"""


@dataclass(frozen=True)
class Data:
    """Packed folders of training and held-out pictures, and the held-out pictures themselves."""

    train: Path
    val: Path
    images: Path


def write_recipe(folder: Path, data: Data, name: str = "tiny.yaml") -> Path:
    """A recipe for a tiny model on `data`, which evaluates once at the end and traces its input."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(RECIPE.format(train=data.train, val=data.val))
    return path


def command(module: str, *arguments: object, processes: int = 0) -> list[str]:
    """The command line of `python -m module`, under torchrun if `processes` is given."""
    python = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes else [sys.executable]
    return [*python, "-m", module, *map(str, arguments)]


def run(
    module: str, *arguments: object, processes: int = 0, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run to the end; `processes` meet as torchrun's workers do, or `cold`, are started by torchrun."""
    if not cold:
        return run_warm(["-m", module, *map(str, arguments)], environment(), TIMEOUT, processes)
    return subprocess.run(
        command(module, *arguments, processes=processes),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def succeed(module: str, *arguments: object, processes: int = 0) -> str:
    """Run to the end and return stdout; fails with stderr if the exit code is not 0.

    With `processes`, so many of them meet as torchrun's workers do.
    """
    return _succeed(["-m", module, *map(str, arguments)], processes)


def script(name: str, *arguments: object, processes: int = 0) -> str:
    """Run a script of tests/, as `succeed` does."""
    return _succeed([str(ROOT / "tests" / name), *map(str, arguments)], processes)


def _succeed(arguments: list[str], processes: int) -> str:
    done = run_warm(arguments, environment(), TIMEOUT, processes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Job:
    """A command that runs beside the test."""

    def __init__(self, folder: Path, module: str, *arguments: object, processes: int = 0) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            command(module, *arguments, processes=processes),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_step(self, step: int) -> None:
        """Until metrics.jsonl has a row of `step`."""
        self.wait_until(lambda: any(row["step"] >= step for row in metrics(self.folder)))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        limit = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.poll() is None, self.finish()[1]
            assert time.monotonic() < limit, "the job did not come so far"
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9 of all processes of the job; torchrun's workers are not in its process group."""
        for pid in [self.process.pid, *self.workers()]:
            os.kill(pid, signal.SIGKILL)
        self.finish()

    def workers(self) -> list[int]:
        """Process ids of torchrun's workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(
            encoding="utf-8"
        )
        return [int(pid) for pid in children.split()]

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output


class WarmJob(Job):
    """A job whose processes begin with their imports done; several meet as torchrun's workers do."""

    def __init__(self, folder: Path, module: str, *arguments: object, processes: int = 0) -> None:
        self.folder = folder
        self._output = folder.with_name(f"{folder.name}.output")
        call = ["-m", module, *map(str, arguments)]
        with self._output.open("w") as file:
            self.process = start_warm(call, environment(), processes, file.fileno(), file.fileno())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.finish()

    def workers(self) -> list[int]:
        assert isinstance(self.process, WarmWorkers)
        return [process.pid for process in self.process.running]

    def finish(self) -> tuple[int, str]:
        return wait_warm(self.process, TIMEOUT), self._output.read_text()


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def rows(file: Path) -> list[dict[str, Any]]:
    """Whole rows of a JSON-lines file that may be being written."""
    if not file.exists():
        return []
    return [
        json.loads(line)
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return rows(folder / "metrics.jsonl")


def losses(folder: Path) -> dict[int, float]:
    """Training loss by step; every step must stand once."""
    training = [row for row in metrics(folder) if "split" not in row]
    steps = [row["step"] for row in training]
    assert len(set(steps)) == len(steps), f"a step stands twice in {folder}"
    return {row["step"]: row["loss"] for row in training}


def trace(folder: Path) -> dict[int, list[tuple[int, str, int]]]:
    """By step, the (position, key, checksum of the pixels) of all images of all processes, in order."""
    found: dict[int, list[tuple[int, str, int]]] = {}
    for file in sorted((folder / "trace").glob("rank-*.jsonl")):
        for row in rows(file):
            found.setdefault(row["step"], []).append((row["position"], row["key"], row["crc32"]))
    return {step: sorted(images) for step, images in sorted(found.items())}


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_bytes())
