"""Seconds that a save blocks the step loop, and seconds until it is on the disk.

    python tests/bench/saving.py [--processes 2] [--rounds 5] [--folder FOLDER]

ViT-B/16 with 21,843 classes (102.6 M parameters) and Adam under FSDP, against torch.save of the gathered
state and against torch.distributed.checkpoint's async_save. Prints medians over the rounds, of the slowest
process, and apart from them the first round of each, in which the others allocate. All three flush to the
disk, and keep the newest only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.config.schema import Config, EngineConfig, ModelConfig
from pretrain.engine.fsdp import FSDP
from pretrain.model.build import build_model
from pretrain.run import processes
from pretrain.run.processes import World

STEPS_BEFORE_THE_FIRST_SAVE = 5.0  # s

# Up to its first yield, what the step loop waits for; up to the next, what it does not wait for; and so on.
Method = Callable[[int], Iterator[None]]


def engine(world: World) -> FSDP:
    config = Config(model=ModelConfig(name="vit_b16", head="linear"))
    config.engine = EngineConfig(kind="fsdp", precision="fp32")
    with torch.device("meta"):
        model = build_model(config, 21_843)
    return FSDP(config, world, model, lambda name, shape: torch.rand(shape))


def ours(trained: FSDP, world: World, folder: Path) -> Method:
    """The loop waits for `save`, and at two later boundaries for `advance`."""
    saver = Saver(folder, world, background=True, retention=Retention(1))
    saver.reserve(trained.ranges())

    def method(number: int) -> Iterator[None]:
        saver.save(number, trained.ranges(), {"step": number})
        while saver.pending:
            yield
            while world.sum([float(saver.written)])[0] < world.size:
                time.sleep(0.005)
            yield
            saver.advance()

    return method


def gathered(trained: FSDP, world: World, folder: Path) -> Method:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def method(number: int) -> Iterator[None]:
        state = get_state_dict(trained.model, trained.optimizer, options=options)
        if world.rank == 0:
            with (folder / f"{number}.pt").open("wb") as stream:
                torch.save(state, stream)
                stream.flush()
                os.fsync(stream.fileno())
            (folder / f"{number - 1}.pt").unlink(missing_ok=True)
        world.barrier()
        yield

    return method


def async_save(trained: FSDP, world: World, folder: Path) -> Method:
    def method(number: int) -> Iterator[None]:
        model, optimizer = get_state_dict(trained.model, trained.optimizer)
        future = dcp.async_save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / str(number))
        yield
        future.result()
        if world.rank == 0:
            shutil.rmtree(folder / str(number - 1), ignore_errors=True)

    return method


def measure(method: Method, rounds: int, world: World) -> list[tuple[float, float]]:
    """(blocked, total) seconds of each round, of the slowest process."""
    found = []
    for number in range(rounds + 1):
        world.barrier()
        began = time.perf_counter()
        marks = [time.perf_counter() for _ in method(number)] + [time.perf_counter()]
        parts = [end - begin for begin, end in zip([began, *marks], marks, strict=False)]
        times = (sum(parts[::2]), sum(parts))
        found.append(tuple(max(values) for values in zip(*world.gather(times), strict=True)))
    return found


def work(folder: Path, rounds: int) -> None:
    warnings.filterwarnings("ignore")
    world = processes.start(600)
    trained = engine(world)
    rows: dict[str, list[tuple[float, float]]] = {}
    for name, make in (
        ("ours", ours),
        ("torch.save of gathered state", gathered),
        ("DCP async_save", async_save),
    ):
        world.on_rank0(lambda: folder.mkdir(parents=True))
        method = make(trained, world, folder)
        time.sleep(STEPS_BEFORE_THE_FIRST_SAVE)
        rows[name] = measure(method, rounds, world)
        world.on_rank0(lambda: shutil.rmtree(folder))
    if world.rank == 0:
        parameters = sum(p.numel() for p in trained.model.parameters())
        print(f"{parameters / 1e6:.1f} M parameters with Adam, FSDP x {world.size}, {rounds} rounds")
        medians = {}
        for name, found in rows.items():
            columns = list(zip(*found[1:], strict=True))
            medians[name] = [statistics.median(column) for column in columns]
            blocked, total = (
                f"{statistics.median(column):.2f} s ({min(column):.2f} to {max(column):.2f})"
                for column in columns
            )
            first = f"{found[0][0]:.2f} / {found[0][1]:.2f}"
            print(f"{name:30} blocked {blocked:24} total {total:24} first: {first}")
        (mine, total), (whole, whole_total), (dcp_blocked, dcp_total) = medians.values()
        print(
            f"blocked: 1/{whole / mine:.1f} of torch.save, {mine / dcp_blocked:.2f} of async_save; "
            f"total: {total / whole_total:.2f} of torch.save, {total / dcp_total:.2f} of async_save"
        )
    processes.leave(world, 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if "RANK" in os.environ:
        work(given.folder, given.rounds)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.processes}"]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        arguments = [
            str(Path(__file__).resolve()),
            "--folder",
            f"{folder}/saves",
            "--rounds",
            str(given.rounds),
        ]
        sys.exit(subprocess.run([sys.executable, *launch, *arguments]).returncode)


if __name__ == "__main__":
    main()
