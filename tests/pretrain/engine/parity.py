"""Run by torchrun: train CONFIG under each of several engines in turn, in one group of processes.

parity.py CONFIG RUNS [key=value ...]; RUNS: JSON, {run name: [key=value, ...]}. Compiled blocks need no C++
compiler here, and all of a run share two graphs: one for training, one for evaluation. An engine whose blocks
see the same tensors as those of one before uses its graphs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

from pretrain.config.batch_split import split_batch
from pretrain.config.loading import load
from pretrain.engine import blocks
from pretrain.engine.optim import planned_model
from pretrain.inputs import Job, open_inputs
from pretrain.run import processes
from pretrain.run.folder import RunFolder
from pretrain.run.stop import StopFlag
from pretrain.run.watchdog import Watchdog
from pretrain.train import build_trainer

graph_calls = 0


def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """The backend aot_eager, which counts in graph_calls how often what it compiled is called."""
    compiled = lookup_backend("aot_eager")(graph, inputs)

    def call(*arguments: Any) -> Any:
        global graph_calls
        graph_calls += 1
        return compiled(*arguments)

    return call


blocks.BACKEND = counted
torch._dynamo.config.fail_on_recompile_limit_hit = True
recipe, runs, *common = sys.argv[1:]
world = processes.start(60)
for name, settings in json.loads(runs).items():
    counters.clear()
    graph_calls = 0
    config = load(recipe, [*common, f"run.name={name}", *settings])
    folder = RunFolder(config.folder, world.rank)
    folder.create()
    world.barrier()
    folder.log_to_file_and_console()
    split = split_batch(config.train, world.size)
    stop = StopFlag()
    watchdog = Watchdog(folder, world.rank, ["here"] * world.size, 60, stop)
    job = Job(config, open_inputs(config), split, world, folder, stop, watchdog)
    assert build_trainer(job, planned_model(config, job.inputs.num_classes)).run() == 0
    assert counters["stats"]["unique_graphs"] in (0, 2 * config.engine.compile)
    assert (graph_calls > 0) == config.engine.compile
processes.leave(world, 0)
