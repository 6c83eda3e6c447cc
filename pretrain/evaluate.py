"""Evaluation: every image exactly once, for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_tools.errors import DataError
from data_tools.tile_batch import TileBatch

from .engine.base import Engine
from .model.inspection import rolled_out
from .objective import Measure, probabilities
from .run.processes import World
from .run.report import Example

EXAMPLES = 12  # images of the report


@dataclass(frozen=True)
class Evaluation:
    """means: over the `n` readable images, by name (see `build_measure`). bad: how many were unreadable."""

    n: int
    means: dict[str, float]
    bad: int

    @property
    def score(self) -> float:
        """What decides which checkpoint is the best: top1, or minus the loss if there are no classes."""
        return self.means.get("top1", -self.means["loss"])

    def row(self) -> dict[str, Any]:
        """The figures as metrics.jsonl has them."""
        return {"n": self.n, **self.means, "bad": self.bad}

    def __str__(self) -> str:
        form = {"top1": "{:.2%}", "top5": "{:.2%}", "colours": "{:.2%}"}
        parts = [f"{key} {form.get(key, '{:.4f}').format(value)}" for key, value in self.means.items()]
        return "  ".join([*parts, f"n {self.n}"])


class Interrupted(Exception):
    """The job was asked to stop during an evaluation."""


def evaluate(
    outputs_of: Callable[[TileBatch], Tensor],
    measure: Measure,
    batches: Iterable[TileBatch],
    world: World,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """The means of `measure` over the batches of all processes; called by all of them together.

    outputs_of(batch): outputs of the model, (B, outputs). Images of weight 0 do not count. Raises Interrupted
    if stop() is true on any process, and DataError if no image could be read.
    """
    sums: dict[str, float] = {}
    count = bad = 0.0
    for cpu_batch in batches:
        if world.sum([float(stop())])[0]:
            raise Interrupted
        batch = cpu_batch.to(world.device)
        outputs = outputs_of(batch)
        found = measure(outputs, batch)
        columns = torch.stack([torch.ones_like(batch.weight), *(column.float() for column in found.values())])
        n, *values = (columns.double() * batch.weight).sum(1).tolist()
        count, bad = count + n, bad + len(cpu_batch.bad)
        for key, value in zip(found, values, strict=True):
            sums[key] = sums.get(key, 0.0) + value
    n, bad, *values = world.sum([count, bad, *sums.values()])
    if not n:
        raise DataError("none of the evaluation images could be read; see bad_samples.jsonl", shared=True)
    means = {key: value / n for key, value in zip(sums, values, strict=True)}
    return Evaluation(int(n), means, int(bad))


def make_examples(batches: Iterable[TileBatch], engine: Engine) -> list[Example]:
    """The first EXAMPLES readable images of `batches`, evaluated by `engine`, for the report.

    Called by all processes together, with the same batches.
    """
    found: list[Example] = []
    for batch in batches:
        found += _examples(batch, engine)
        if len(found) >= EXAMPLES:
            break
    return found[:EXAMPLES]


def _examples(batch: TileBatch, engine: Engine) -> Iterator[Example]:
    with rolled_out(engine.model) as rollout:
        outputs = engine.logits(batch.to(engine.world.device)).float().cpu()
    predicted = probabilities(outputs, engine.config.objective.name)
    tiles = batch.tiles.split(batch.tiles_per_image.tolist())
    for image, (rows, columns) in enumerate(batch.grid.tolist()):
        if batch.weight[image]:
            attention = rollout.patches(engine.model, image, rows, columns).cpu()
            known = _known(batch.labels[image])
            yield Example(tiles[image].clone(), (rows, columns), known, predicted[image], attention)


def _known(labels: Tensor) -> tuple[float, ...]:
    values = labels.view(-1).tolist()
    return tuple(values if labels.is_floating_point() else (label for label in values if label >= 0))
