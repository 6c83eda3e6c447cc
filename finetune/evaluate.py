"""Exact evaluation of trained weights over shards."""

from __future__ import annotations

import json

import torch

from data_tools.errors import UsageError
from data_tools.shards.shard_set import ShardSet
from pretrain.evaluate import evaluate
from pretrain.inputs import eval_stream
from pretrain.objective import build_measure
from pretrain.run import processes

from .source import Source, open_source

TIMEOUT = 1800


def evaluate_run(run: str, shards: str, batch_size: int, workers: int, weights: str) -> int:
    """Print one JSON line with n, loss, top1 and top5, or what the objective has in their place, from rank 0.

    Returns the exit code.
    """
    if batch_size < 1 or workers < 0:
        raise UsageError("--batch-size must be above 0 and --workers at least 0")
    source = open_source(run, weights)
    dataset = ShardSet.open(shards)
    _check_labels(source, dataset, shards)
    data = source.data
    data.workers = workers
    world = processes.start(TIMEOUT)
    model = source.load(world.device)
    stream = eval_stream(dataset, data, batch_size, world)
    with torch.inference_mode():
        found = evaluate(model, build_measure(source.objective), stream, world)
    if world.rank == 0:
        print(json.dumps(found.row()))
    processes.leave(world, 0)


def _check_labels(source: Source, dataset: ShardSet, shards: str) -> None:
    """Refuse shards whose labels are not those that the model knows."""
    known = source.facts["num_classes"]
    if source.objective == "masked_patches":
        return
    if source.objective == "regression" or dataset.numeric:
        found = dataset.num_classes if dataset.numeric else 1
        if source.objective != "regression" or found != known:
            raise UsageError(f"{shards}: its labels are not what {source.name} was trained to predict")
        return
    classes = source.facts["classes"]
    if classes and dataset.classes and classes != dataset.classes:
        raise UsageError(
            f"{shards}: its classes.json is not that of {source.name}; pack with the same classes"
        )
    if dataset.num_classes > known:
        raise UsageError(f"{shards}: it has {dataset.num_classes} classes, {source.name} knows {known}")
