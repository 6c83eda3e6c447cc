"""Pretrained weights for a model with another head, resolution or number of tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_tools.errors import UsageError
from pretrain.engine.base import InitialValue
from pretrain.model.classifier import Classifier
from pretrain.model.init import initial_value
from pretrain.model.resize import Geometry, adapt_positions, fold_tiles, is_position_table

from .source import Source


@dataclass(frozen=True)
class Adaptation:
    """Where each parameter of a model gets its first value from, and the values themselves.

    origin: by parameter: "copied", "resized 4x4→6x6", "initialised".
    """

    origin: dict[str, str]
    values: dict[str, Tensor]
    summary: str

    def initial_value(self, model: nn.Module, seed: int) -> InitialValue:
        def value(name: str, shape: torch.Size) -> Tensor:
            if name in self.values:
                return self.values[name]
            return initial_value(model, name, shape, seed)

        return value


def adapt(source: Source, model: Classifier, mode: str) -> Adaptation:
    """The parameters of `source` for `model`; position tables are resized by `mode`.

    The head starts anew (2010.11929, section 3.2). Everything else must be in both, in the same shape.
    Raises UsageError naming the first parameter that is not.
    """
    with torch.device("meta"):
        original = source.build()
    old, new = original.geometry, model.geometry
    if old.prefix != new.prefix:
        raise UsageError(
            f"{source.name}: pretrained with model.pool={source.facts['model']['pool']}, and a class "
            f"token is part of the body: set model.pool to the same",
            shared=True,
        )
    _refuse_differences(source, {name for name, _ in original.named_parameters()})
    body = {name: source.read(name) for name in source.shapes if not name.startswith("head.")}
    if old.max_tiles > 1 and new.max_tiles == 1:
        body = fold_tiles(body, old.prefix)
    origin: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("head.") or (name not in body and old.max_tiles == 1 < new.max_tiles):
            origin[name] = "initialised"
            continue
        if name not in body:
            raise UsageError(f"{source.name}: it lacks {name}, which this model needs", shared=True)
        value = body[name]
        origin[name] = "copied"
        if is_position_table(name):
            value = adapt_positions(name, value, old, new, mode)
            if value.shape != body[name].shape:
                origin[name] = f"resized {_extent(old)}→{_extent(new)}"
        if value.shape != parameter.shape:
            raise UsageError(
                f"{source.name}: {name} has shape {list(value.shape)}, this model has "
                f"{list(parameter.shape)}",
                shared=True,
            )
        values[name] = value
    return Adaptation(origin, values, _summary(source, model, origin, old, new, mode))


def _refuse_differences(source: Source, expected: set[str]) -> None:
    """Refuse weights whose names are not those of the model that they say they belong to."""
    missing = sorted(name for name in expected - source.shapes.keys() if not name.startswith("head."))
    surplus = sorted(name for name in source.shapes.keys() - expected if not name.startswith("head."))
    if missing or surplus:
        lacks = f"lacks {missing[0]}" if missing else ""
        has = f"holds {surplus[0]}, which its model does not know" if surplus else ""
        raise UsageError(f"{source.name}: it {' and '.join(filter(None, (lacks, has)))}", shared=True)


def _summary(
    source: Source,
    model: Classifier,
    origin: dict[str, str],
    old: Geometry,
    new: Geometry,
    mode: str,
) -> str:
    body = [name for name in origin if not name.startswith("head.")]
    taken = [name for name in body if origin[name] != "initialised"]
    if old == new:
        positions = f"positions {_extent(old)} unchanged"
    else:
        positions = f"positions {_extent(old)}→{_extent(new)} ({mode})"
    return (
        f"init {source.name}: backbone {len(taken)}/{len(body)} tensors, {positions}, head re-initialised "
        f"{source.facts['num_classes']}→{model.num_classes}"
    )


def _extent(geometry: Geometry) -> str:
    rows, columns = geometry.grid
    tiles = f" in {geometry.max_tiles} tiles" if geometry.max_tiles > 1 else ""
    return f"{rows}x{columns}{tiles}"
