"""A few held-out images, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    """The first images of `batches`, which are the same on all processes; unreadable ones are left out."""
    found: list[Example] = []
    for batch in batches:
        found += _examples(batch, engine)
        if len(found) >= EXAMPLES:
            break
    return found[:EXAMPLES]


def _examples(batch: TileBatch, engine: Engine) -> Iterator[Example]:
    with rolled_out(engine.model) as rollout:
        outputs = engine.logits(batch.to(engine.world.device)).float().cpu()
    tiles = batch.tiles.split(batch.tiles_per_image.tolist())
    for image, (rows, columns) in enumerate(batch.grid.tolist()):
        if batch.weight[image]:
            attention = rollout.patches(engine.model, image, rows, columns).cpu()
            known = _known(batch.labels[image])
            yield Example(tiles[image].clone(), (rows, columns), known, outputs[image], attention)


def _known(labels: Tensor) -> tuple[float, ...]:
    values = labels.view(-1).tolist()
    return tuple(values if labels.is_floating_point() else (label for label in values if label >= 0))
