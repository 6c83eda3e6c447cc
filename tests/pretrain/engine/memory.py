"""Run by torchrun: how far each process's memory rises while CONFIG is trained under several engines in turn.

memory.py CONFIG OUTPUT RUNS [key=value ...]; RUNS: JSON, {run name: [key=value, ...]}. Writes OUTPUT: JSON,
{run name: [[most bytes until the first step, most until the end] of each process]}.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.engine.optim import planned_model
from pretrain.inputs import Job, open_inputs
from pretrain.run import processes
from pretrain.run.folder import RunFolder
from pretrain.run.stop import StopFlag
from pretrain.run.watchdog import Watchdog
from pretrain.train import build_trainer


def resident(key: str) -> int:
    """Bytes: VmRSS is what this process has now, VmHWM the most since the last reset."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return 1024 * int(found[1])


M_MMAP_THRESHOLD = -3  # of glibc's malloc.h: what is larger goes back when it is freed, so it can be measured
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 100_000)
recipe, output, runs, *common = sys.argv[1:]
world = processes.start(100)
rises = {}
for name, settings in json.loads(runs).items():
    config = load(recipe, [*common, f"run.name={name}", *settings])
    folder = RunFolder(config.folder, world.rank)
    folder.create()
    world.barrier()
    stop = StopFlag()
    watchdog = Watchdog(folder, world.rank, ["here"] * world.size, 100, stop)
    inputs, split = open_inputs(config), split_batch(config.train, world.size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    before = resident("VmRSS")
    model = planned_model(config, inputs.num_classes)
    trainer = build_trainer(Job(config, inputs, split, world, folder, stop, watchdog), model)
    built = resident("VmHWM") - before
    trainer.run()
    rises[name] = world.gather((built, resident("VmHWM") - before))
    del trainer
if world.rank == 0:
    Path(output).write_text(json.dumps(rises), encoding="utf-8")
processes.leave(world, 0)
