"""Run by torchrun: resume the run of CONFIG and save what it holds, without training, under DESTINATION."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.checkpoints.saver import Saver
from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.inputs import open_inputs
from pretrain.run import processes as processes
from pretrain.run.folder import RunFolder
from pretrain.run.stop import StopFlag
from pretrain.run.watchdog import Watchdog
from pretrain.train import Trainer

destination, recipe, *settings = sys.argv[1:]
config = load(recipe, settings)
world = processes.start(60)
split = split_batch(config.train, world.size)
folder, stop = RunFolder(config.folder, world.rank), StopFlag()
watchdog = Watchdog(folder, world.rank, ["here"] * world.size, 60, stop)
trainer = Trainer(config, open_inputs(config), split, world, folder, stop, watchdog)
assert trainer.step == 5
saver = Saver(Path(destination), world, background=False)
saver.save(trainer.step, trainer.engine.ranges(), trainer._state())
processes.leave(world, 0)
