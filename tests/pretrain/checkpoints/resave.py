"""Run by torchrun: resume the run of CONFIG and save what it holds, without training, under DESTINATION."""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.checkpoints.saver import Saver
from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.engine.optim import planned_model
from pretrain.inputs import Job, open_inputs
from pretrain.resume import state_to_save
from pretrain.run import processes
from pretrain.run.folder import RunFolder
from pretrain.run.stop import StopFlag
from pretrain.run.watchdog import Watchdog
from pretrain.train import build_trainer

destination, recipe, *settings = sys.argv[1:]
config = load(recipe, settings)
world = processes.start(60)
split = split_batch(config.train, world.size)
folder, stop = RunFolder(config.folder, world.rank), StopFlag()
watchdog = Watchdog(folder, world.rank, ["here"] * world.size, 60, stop)
job = Job(config, open_inputs(config), split, world, folder, stop, watchdog)
trainer = build_trainer(job, planned_model(config, job.inputs.num_classes))
assert trainer.step == 5
saver = Saver(Path(destination), world, background=False)
state = state_to_save(job, trainer.engine, trainer.step, trainer.images)
saver.save(trainer.step, trainer.engine.ranges(), state)
processes.leave(world, 0)
