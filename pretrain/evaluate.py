"""Exact evaluation: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_tools.batch import TileBatch
from data_tools.errors import DataError

from .engine.world import World
from .objective import multi_hot, sigmoid, softmax

EXAMPLES = 12


@dataclass(frozen=True)
class Example:
    """An evaluated image, for the report. tiles: uint8 (n, C, S, S); probabilities: (classes,)."""

    tiles: Tensor
    grid: tuple[int, int]
    labels: tuple[int, ...]
    probabilities: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Means over the n images that could be read; top5 is None with fewer than 6 classes."""

    n: int
    loss: float
    top1: float
    top5: float | None
    bad: int
    examples: list[Example]

    def row(self) -> dict[str, Any]:
        row = {
            "n": self.n,
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "bad": self.bad,
        }
        return {key: value for key, value in row.items() if value is not None}


class Interrupted(Exception):
    """The job was asked to stop during an evaluation."""


def evaluate(
    logits_of: Callable[[TileBatch], Tensor],
    batches: Iterable[TileBatch],
    world: World,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Top-1, top-5 and loss of `logits_of` over `batches`, which all processes share out.

    The loss is the softmax cross-entropy, or with several labels an image the sigmoid's; a guess is right
    if it is one of the image's labels. Images of weight 0 do not count. Raises Interrupted when `stop` holds
    on any process.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    examples: list[Example] = []
    classes = 0
    for cpu_batch in batches:
        if world.sum([float(stop())])[0]:
            raise Interrupted
        batch = cpu_batch.to(world.device)
        logits = logits_of(batch).float()
        classes = logits.shape[-1]
        weight = batch.weight.double()
        function = sigmoid if batch.labels.ndim == 2 else softmax
        losses = function(logits, batch.labels, 0.0).double()
        hits = multi_hot(batch.labels, classes).gather(1, logits.topk(min(5, classes)).indices)
        columns = [torch.ones_like(losses), losses, hits[:, 0].double(), hits.any(1).double()]
        sums[:4] += (torch.stack(columns) * weight).sum(1).cpu()
        sums[4] += len(cpu_batch.bad)
        if len(examples) < EXAMPLES and world.rank == 0:
            examples += _examples(cpu_batch, logits.softmax(-1).cpu())
    n, loss, top1, top5, bad = world.sum(sums.tolist())
    if not n:
        raise DataError("none of the evaluation images could be read; see bad_samples.jsonl", shared=True)
    return Evaluation(
        n=int(n),
        loss=loss / n,
        top1=top1 / n,
        top5=top5 / n if classes > 5 else None,
        bad=int(bad),
        examples=examples[:EXAMPLES],
    )


def _known(labels: Tensor) -> tuple[int, ...]:
    return tuple(label for label in labels.view(-1).tolist() if label >= 0)


def _examples(batch: TileBatch, probabilities: Tensor) -> list[Example]:
    split = batch.tiles.split(batch.tiles_per_image.tolist())
    return [
        Example(tiles.clone(), (int(grid[0]), int(grid[1])), _known(label), row)
        for tiles, grid, label, weight, row in zip(
            split, batch.grid, batch.labels, batch.weight, probabilities, strict=True
        )
        if weight
    ]
