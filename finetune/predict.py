"""A trained run at work: exact evaluation over shards, and predictions for single images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from data_tools.batch import TileBatch
from data_tools.errors import UsageError
from data_tools.images import DecodeError, decode
from data_tools.shards import ShardSet
from pretrain.engine import world as processes
from pretrain.evaluate import evaluate
from pretrain.inputs import eval_stream, eval_transform
from pretrain.objective import build_measure

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


def predict_images(run: str, images: Sequence[str], topk: int, as_json: bool, weights: str) -> int:
    """Print the likeliest classes of each image, or its numbers.

    Returns the exit code: 3 if an image could not be read, after all others.
    """
    source = open_source(run, weights)
    if source.objective == "masked_patches":
        raise UsageError(
            f"{run}: it was trained to guess colours of masked patches and knows no classes: "
            "fine-tune it first"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = source.load(device)
    data = source.data
    transform = eval_transform(data)
    code = 0
    for path in images:
        try:
            pixels = decode(Path(path).read_bytes(), data.max_pixels)
        except (OSError, DecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"error: {path}: {reason}", file=sys.stderr)
            code = 3
            continue
        tiles, rows, columns = transform(pixels, 0)
        with torch.inference_mode():
            outputs = model(_single(tiles, rows, columns).to(device))[0]
        if source.objective == "regression":
            numbers = outputs.tolist()
            shown = ", ".join(f"{number:.4g}" for number in numbers)
            print(json.dumps({"image": path, "numbers": numbers}) if as_json else f"{path}: {shown}")
            continue
        probabilities = outputs.softmax(-1)
        best = probabilities.topk(min(topk, len(probabilities)))
        pairs = [
            (source.class_name(int(label)), float(p))
            for p, label in zip(best.values, best.indices, strict=True)
        ]
        if as_json:
            print(json.dumps({"image": path, "classes": dict(pairs)}))
        else:
            print(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in pairs))
    return code


def _single(tiles: torch.Tensor, rows: int, columns: int) -> TileBatch:
    tiles = torch.as_tensor(tiles)
    return TileBatch(
        tiles=tiles,
        tiles_per_image=torch.tensor([len(tiles)]),
        grid=torch.tensor([[rows, columns]]),
        labels=torch.tensor([-1]),
        weight=torch.ones(1),
        position=torch.zeros(1, dtype=torch.int64),
        sample=torch.zeros(1, dtype=torch.int64),
    )
