"""Exact evaluation of trained weights over shards, and the features of their images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError
from data_tools.shards.index import CLASSES_NAME
from data_tools.shards.names import Shards, written
from data_tools.shards.shard_set import ShardSet
from data_tools.tile_batch import BadSample
from pretrain.evaluate import Evaluation, evaluate
from pretrain.inputs import eval_stream
from pretrain.model.inspection import features
from pretrain.objective import build_measure
from pretrain.run.processes import ALONE, World

from .predict import TrainedRun
from .source import TrainedWeights

log = logging.getLogger("pretrain")


def evaluate_run(
    source: TrainedWeights, shards: Shards, world: World, batch_size: int = 64, workers: int = 4
) -> Evaluation:
    """Means over all samples of `shards`; the processes divide them, and each sample counts once.

    batch_size: images at a time; workers: decoding threads of each process. Raises UsageError where the
    labels are not those that the model knows.
    """
    dataset = ShardSet.open(shards)
    for note in dataset.notes if world.rank == 0 else ():
        log.warning(note)
    _check_labels(source, dataset, written(shards))
    data = source.data
    data.workers = workers
    model = source.load(world.device)
    stream = eval_stream(dataset, data, batch_size, world)
    with torch.inference_mode():
        return evaluate(model, build_measure(source.objective), stream, world)


@dataclass(frozen=True)
class Embedded:
    """Features of the images of shards that could be read, in their order.

    names: "shard/key" of each; labels: as in a TileBatch; bad: the samples that could not be read.
    """

    features: NDArray[np.float32]
    names: list[str]
    labels: NDArray[Any]
    bad: list[BadSample]


def embed_shards(
    run: TrainedRun, shards: Shards, layer: int | None = None, batch_size: int = 64, workers: int = 4
) -> Embedded:
    """The features of all images of `shards`; layer: as in `inspection.features`."""
    dataset = ShardSet.open(shards)
    data = replace(run.preprocessing, workers=workers)
    found, samples, labels = [], [], []
    bad: list[BadSample] = []
    with torch.inference_mode():
        for batch in eval_stream(dataset, data, batch_size, ALONE):
            kept = batch.weight > 0
            found.append(features(run.model, batch.to(run.device), layer)[kept.to(run.device)].cpu().numpy())
            samples += batch.sample[kept].tolist()
            labels.append(batch.labels[kept].numpy())
            bad += batch.bad
    if not samples:
        raise DataError(f"{written(shards)}: none of its images could be read")
    names = [f"{dataset.shard_name(sample)}/{dataset.key(sample)}" for sample in samples]
    return Embedded(np.concatenate(found), names, np.concatenate(labels), bad)


def _check_labels(source: TrainedWeights, dataset: ShardSet, shards: str) -> None:
    """UsageError for shards whose labels are not those that the model knows."""
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
        places = (str(place) for place in Path(source.name).parents if (place / CLASSES_NAME).is_file())
        raise dataset.other_classes(classes, next(places, source.name))
    if dataset.num_classes > known:
        raise UsageError(f"{shards}: it has {dataset.num_classes} classes, {source.name} knows {known}")
