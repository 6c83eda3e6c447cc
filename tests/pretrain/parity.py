"""Run by torchrun: train CONFIG under each of several engines in turn, in one group of processes.

parity.py CONFIG RUNS [key=value ...]; RUNS: JSON, {run name: [key=value, ...]}. Compiled blocks need no C++
compiler here, and all share two graphs: one for training, one for evaluation.
"""

from __future__ import annotations

import json
import sys

import torch
from torch._dynamo.utils import counters

from pretrain.config import load
from pretrain.engine import blocks
from pretrain.engine import world as processes
from pretrain.inputs import open_inputs
from pretrain.run_folder import RunFolder
from pretrain.split import split_batch
from pretrain.stop import StopFlag
from pretrain.train import Trainer
from pretrain.watchdog import Watchdog

blocks.BACKEND = "aot_eager"
recipe, runs, *common = sys.argv[1:]
world = processes.start(60)
for name, settings in json.loads(runs).items():
    torch._dynamo.reset()
    counters.clear()
    config = load(recipe, [*common, f"run.name={name}", *settings])
    folder = RunFolder(config.folder, world.rank)
    folder.create()
    world.barrier()
    folder.log_to_file_and_console()
    split = split_batch(config.train, world.size)
    stop = StopFlag()
    watchdog = Watchdog(folder, world.rank, ["here"] * world.size, 60, stop)
    assert Trainer(config, open_inputs(config), split, world, folder, stop, watchdog).run() == 0
    assert counters["stats"]["unique_graphs"] == 2 * config.engine.compile
processes.leave(world, 0)
