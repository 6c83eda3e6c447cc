"""A few held-out images, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from data_tools.batch import TileBatch

from .engine.base import Engine
from .model.rollout import rolled_out

EXAMPLES = 12


@dataclass(frozen=True)
class Example:
    """tiles: uint8 (n, C, S, S); outputs: of the model (outputs,); attention: see `Rollout.patches`."""

    tiles: Tensor
    grid: tuple[int, int]
    labels: tuple[float, ...]
    outputs: Tensor
    attention: Tensor


def look_at(batches: Iterable[TileBatch], engine: Engine) -> list[Example]:
    """The first images of `batches`, which are of one image each, and the same on all processes."""
    readable = (batch for batch in batches if batch.weight.all())
    return [_example(batch, engine) for batch in islice(readable, EXAMPLES)]


def _example(batch: TileBatch, engine: Engine) -> Example:
    with rolled_out(engine.model) as rollout:
        outputs = engine.logits(batch.to(engine.world.device))
    rows, columns = batch.grid[0].tolist()
    attention = rollout.patches(engine.model, rows, columns)
    known = _known(batch.labels)
    return Example(batch.tiles, (rows, columns), known, outputs[0].float().cpu(), attention.cpu())


def _known(labels: Tensor) -> tuple[float, ...]:
    values = labels.view(-1).tolist()
    return tuple(values if labels.is_floating_point() else (label for label in values if label >= 0))
