"""What the quickstart's recipe reaches over seeds and instruction sets, and what it costs.

    python tests/bench/quickstart.py [--seeds 10] [--sets default avx2 avx512] [--out FOLDER]
    python tests/bench/quickstart.py --against CHECKOUT [--times 3]

The first trains both stages on two FSDP processes, as the quickstart does, for each seed and each instruction
set that torch can be told to use and this processor has (ATEN_CPU_CAPABILITY), and prints top-1 after each
stage, their mean, range and deviation. A line takes minutes; what is finished in FOLDER is not repeated. The
second times the whole quickstart of this version and of another in turn, and prints the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch.digits import write_digits

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {"default": "", "avx2": "avx2", "avx512": "avx512f"}  # of /proc/cpuinfo


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows: seed, set, pretrained, finetuned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sets", nargs="*", choices=list(FLAGS), default=list(FLAGS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=[], help="key=value of both stages")
    given = parser.parse_args(arguments)
    if given.against:
        against(given.against.resolve(), given.times)
        return []
    out = given.out or Path(tempfile.mkdtemp(prefix="quickstart-"))
    rows = []
    data = pack(out)
    print("seed  set      pretrained  fine-tuned", flush=True)
    for seed in range(1, given.seeds + 1):
        for capability in filter(available, given.sets):
            row = {"seed": seed, "set": capability, **train(out, data, seed, capability, given.settings)}
            rows.append(row)
            print(f"{seed:4d}  {capability:8} {row['pretrained']:9.2%} {row['finetuned']:11.2%}", flush=True)
    summarise(rows)
    return rows


def available(capability: str) -> bool:
    """Whether this processor has the instructions."""
    return FLAGS[capability] in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def pack(out: Path) -> list[str]:
    """The digits as shards in `out`; the settings that name them."""
    for split in ("train", "val"):
        if not (out / "shards" / split).exists():
            write_digits(out / "images")
            source, target = out / "images" / split, out / "shards" / split
            call(["data_tools", "pack", str(source), str(target), "--shard-size", "1MB"], {})
    return [f"data.{split}={out}/shards/{split}" for split in ("train", "val")]


def train(out: Path, data: list[str], seed: int, capability: str, settings: list[str]) -> dict[str, float]:
    """Top-1 after both stages."""
    name = f"{capability}-{seed}"
    env = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    shared = [*data, f"run.dir={out}/runs", f"run.seed={seed}", "tracking.wandb=disabled", *settings]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    call([*torchrun, "pretrain", "configs/quickstart.yaml", f"run.name={name}", *shared], env)
    first = [f"run.name={name}-tuned", f"init={out}/runs/{name}"]
    call([*torchrun, "finetune", "configs/quickstart_finetune.yaml", *first, *shared], env)
    found = {}
    for stage, folder in (("pretrained", name), ("finetuned", f"{name}-tuned")):
        rows = (out / "runs" / folder / "metrics.jsonl").read_text().splitlines()
        found[stage] = [json.loads(row)["top1"] for row in rows if '"top1"' in row][-1]
    return found


def call(module: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=ROOT, env=os.environ | env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(module)} failed:\n{done.stderr}")


def summarise(rows: list[dict[str, Any]]) -> None:
    """Mean, range and deviation of all rows."""
    for stage in ("pretrained", "finetuned"):
        values = [row[stage] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{stage}: mean {statistics.mean(values):.2%}, {min(values):.2%} to {max(values):.2%}, "
            f"deviation {spread:.2%}, mean - 4 deviations {statistics.mean(values) - 4 * spread:.2%}"
        )
    worse = [row for row in rows if row["finetuned"] <= row["pretrained"]]
    print(f"fine-tuning was better in {len(rows) - len(worse)} of {len(rows)}")


def against(other: Path, times: int) -> None:
    """Seconds of both quickstarts in turn, and their ratios."""
    ratios = []
    for _ in range(times):
        seconds = []
        for checkout in (ROOT, other):
            began = time.perf_counter()
            command = [sys.executable, "-m", "launch.quickstart", "--fresh"]
            env = os.environ | {"PYTHONPATH": str(checkout)}
            subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
        print(f"{seconds[0]:.0f} s, the other {seconds[1]:.0f} s: ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
