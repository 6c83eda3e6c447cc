"""Pretrained weights as first values of a model with another head, resolution or number of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_tools.errors import UsageError
from pretrain.config.keys import nearest
from pretrain.model.build import Model
from pretrain.model.init import InitialValue, initial_value
from pretrain.model.resize import POST_TILE, Geometry, adapt_positions, fold_tiles, is_position_table

from .source import TrainedWeights

# Parameters whose shapes or values depend on the tiles (fold_tiles adds to the bias of ln_post). They are
# few and small, so all are read at once.
TABLES = ("token_pos_embedding.", "pre_tile_pos_embed.", "post_tile_pos_embed.")
TILED = (*TABLES, "ln_post.")


@dataclass(frozen=True)
class Adaptation:
    """Where each parameter of a model gets its first value from.

    origin: by parameter "copied", "resized 4x4→6x6" or "initialised"; adapted: the values of parameters that
    depend on the tiles, for the new model; summary: one line for the log.
    """

    source: TrainedWeights
    origin: dict[str, str]
    adapted: dict[str, Tensor]
    summary: str

    def initial_value(self, model: nn.Module, seed: int) -> InitialValue:
        """A function that gives the first value of one parameter of `model`, read when it is asked for.

        seed: for the parameters drawn at random.
        """

        def value(name: str, shape: torch.Size) -> Tensor:
            if name in self.adapted:
                return self.adapted[name]
            if self.origin[name] == "copied":
                return self.source.read(name)
            return initial_value(model, name, shape, seed)

        return value


def adapt(source: TrainedWeights, model: Model, mode: str, missing: Sequence[str] = ()) -> Adaptation:
    """First values for `model` from `source`; mode: how position tables are resized.

    The head is initialised (arXiv 2010.11929, section 3.2). All other parameters of the model must be in the
    source, in the same shape once positions are resized; except those of `missing`, names of parameters or
    modules, which are initialised too where the source lacks them. Raises UsageError naming the first that is
    not.
    """
    with torch.device("meta"):
        original = source.build()
    old, new = original.geometry, model.geometry
    if old.prefix != new.prefix:
        has = "has a" if old.prefix else "has no"
        raise UsageError(
            f"{source.name}: it {has} class token, which is part of the body: set "
            f"model.class_token={str(bool(old.prefix)).lower()}, and model.pool to go with it",
            shared=True,
        )
    source.check(original, ignore="head.")
    _check_missing(model, missing)
    shapes = {name: shape for name, shape in source.shapes.items() if not name.startswith("head.")}
    adapted = _adapted(source, old, new, mode)
    shapes |= {name: tuple(value.shape) for name, value in adapted.items()}
    origin: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        new_tables = old.max_tiles == 1 < new.max_tiles
        new_pool = source.objective == "masked_patches" and name.startswith("pool.")
        if name.startswith("head.") or (name not in shapes and (new_tables or new_pool)):
            origin[name] = "initialised"
            continue
        if name not in shapes and any(f"{name}.".startswith(f"{part}.") for part in missing):
            origin[name] = "initialised"
            continue
        if name not in shapes:
            raise UsageError(
                f"{source.name}: it lacks {name}, which this model needs; "
                f"init_missing=[{name.rpartition('.')[0]}] lets it begin anew",
                shared=True,
            )
        if shapes[name] != tuple(parameter.shape):
            raise UsageError(
                f"{source.name}: {name} has shape {list(shapes[name])}, this model has "
                f"{list(parameter.shape)}",
                shared=True,
            )
        resized = shapes[name] != source.shapes[name]
        origin[name] = f"resized {_extent(old)}→{_extent(new)}" if resized else "copied"
    return Adaptation(source, origin, adapted, _summary(source, model, origin, old, new, mode))


def _adapted(source: TrainedWeights, old: Geometry, new: Geometry, mode: str) -> dict[str, Tensor]:
    """The parameters that depend on the tiles, for the geometry `new`."""
    values = {name: source.read(name) for name in source.shapes if any(part in name for part in TILED)}
    if old.max_tiles > 1 and new.max_tiles == 1:
        if any(name.endswith(POST_TILE) for name in values) and not any(
            name.endswith("ln_post.bias") for name in values
        ):
            raise UsageError(
                f"{source.name}: what it adds for the first tile cannot become part of its last norm, which "
                f"has no bias: set data.max_tiles={old.max_tiles}",
                shared=True,
            )
        values = fold_tiles(values, old.prefix)
    return {
        name: adapt_positions(name, value, old, new, mode) if is_position_table(name) else value
        for name, value in values.items()
    }


def _check_missing(model: nn.Module, missing: Sequence[str]) -> None:
    """UsageError for a name in init_missing that the model does not have."""
    known = [name for name, _ in (*model.named_parameters(), *model.named_modules()) if name]
    for name in missing:
        if name not in known:
            raise UsageError(f"init_missing: the model has no '{name}'{nearest(name, known)}", shared=True)


def _summary(
    source: TrainedWeights,
    model: Model,
    origin: dict[str, str],
    old: Geometry,
    new: Geometry,
    mode: str,
) -> str:
    body = [name for name in origin if not name.startswith("head.")]
    taken = [name for name in body if origin[name] != "initialised"]
    if model.config.position == "rope2d":
        positions = f"rotary positions {_extent(old)}→{_extent(new)}"
    elif old == new:
        positions = f"positions {_extent(old)} unchanged"
    else:
        positions = f"positions {_extent(old)}→{_extent(new)} ({mode})"
    anew = _modules(name for name in body if origin[name] == "initialised")
    left = _modules(
        name
        for name in source.shapes.keys() - origin.keys()
        if not name.startswith("head.") and not any(part in name for part in TABLES)
    )
    return (
        f"init {source.name}: backbone {len(taken)}/{len(body)} tensors, {positions}, head re-initialised "
        f"{source.facts['num_classes']}→{model.num_classes}"
        + (f", also anew: {', '.join(anew)}" if anew else "")
        + (f", not taken: {', '.join(left)}" if left else "")
    )


def _modules(names: Iterable[str]) -> list[str]:
    """The modules of weights and biases, and parameters of other names, each once."""
    return sorted({name.removesuffix(".weight").removesuffix(".bias") for name in names})


def _extent(geometry: Geometry) -> str:
    rows, columns = geometry.grid
    tiles = f" in {geometry.max_tiles} tiles" if geometry.max_tiles > 1 else ""
    return f"{rows}x{columns}{tiles}"
