"""What formats share: names of activations, sizes, position tables, and parts of our models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor, nn

from pretrain.checkpoints.described import check_sizes
from pretrain.config.schema import ModelConfig
from pretrain.model.block import ACTIVATIONS, Block
from pretrain.model.classifier import Classifier
from pretrain.model.hybrid import Bottleneck, PreactivationBottleneck, ResNetV2
from pretrain.model.resize import resize_grid
from pretrain.model.vit import VisionTransformer

from .entries import Weights, shapes_of, tensor


class ImageSettings(NamedTuple):
    """Keys of `data`, and sentences about what was taken for granted or is not done as in the peer."""

    data: dict[str, Any]
    notes: tuple[str, ...]


def classifier(
    fields: ModelConfig, size: Any, classes: int, channels: int, weights: Weights, **parts: bool
) -> Classifier:
    """A model for single tiles, on the context's device; UsageError for sizes that `weights` cannot hold.

    size: of the images, one number or (height, width); parts: as in `Classifier`.
    """
    side = size if isinstance(size, int) else size[0] if size[0] == size[1] else (size[0], size[1])
    check_sizes(fields, side, 1, classes, channels, shapes_of(weights))
    half = [0.5] * channels
    return Classifier(
        fields,
        tile_size=side,
        max_tiles=1,
        num_classes=classes,
        mean=half,
        std=half,
        in_channels=channels,
        **parts,
    )


def class_names(facts: Mapping[str, Any]) -> list[str] | None:
    """One name for each output, None where nobody named the classes; facts: the keys of `weights_file.FACTS`.

    Outputs behind the last name are called LABEL_7 and so on, as by transformers.
    """
    known, outputs = facts["classes"], facts["num_classes"]
    if not known:
        return None
    return [*known, *(f"LABEL_{index}" for index in range(len(known), outputs))]


def name_of(value: Any) -> Any:
    """The name of a class or function, also of one with keywords of its own; all else as it is."""
    if isinstance(value, partial):
        value = value.func
    return getattr(value, "__name__", value)


def our_activation(theirs: Any, names: Mapping[str, str], peer: str) -> str:
    """Our name of an activation that a peer gives as a name or a class.

    names: the peer's -> ours. ValueError for one that is not among them.
    """
    name = theirs if isinstance(theirs, str) else getattr(theirs, "__name__", str(theirs))
    by_case = {key.lower(): ours for key, ours in names.items()}
    if name.lower() not in by_case:
        raise ValueError(f"{peer}'s activation {name!r} is not supported: choose {', '.join(names)}")
    return by_case[name.lower()]


def activation_name(ours: str | Callable[[Tensor], Tensor], names: Mapping[str, str], peer: str) -> str:
    """The peer's name of one of our activations, a name or a function; ValueError if it has none.

    names: the peer's -> ours.
    """
    if not isinstance(ours, str):
        ours = next(name for name, function in ACTIVATIONS.items() if function is ours)
    for theirs, name in names.items():
        if name == ours:
            return theirs
    raise ValueError(f"{peer} has no activation {ours}")


def refuse(peer: str, has: Mapping[str, bool]) -> None:
    """Raise ValueError for the first thing whose value in `has` is True: the peer does not know it."""
    for what, present in has.items():
        if present:
            raise ValueError(f"{peer} cannot express {what}")


def three(values: Any) -> tuple[float, float, float]:
    """One number for each colour, from one number for all or a list of one or three; ValueError for two."""
    found = [values] if isinstance(values, int | float) else list(values)
    if len(found) not in (1, 3):
        raise ValueError(f"{found} are {len(found)} numbers for three colours")
    red, green, blue = found * (3 // len(found))
    return red, green, blue


def square(sizes: Any, name: str) -> int:
    """The side of patches given as one number or two; ValueError if they are not square."""
    if isinstance(sizes, int):
        return sizes
    height, width = (int(side) for side in sizes)
    if height != width:
        raise ValueError(f"{name} is {height}x{width}: only square patches are supported")
    return height


def fitted(
    weights: Weights,
    name: str,
    grids: list[tuple[int, int]],
    new: tuple[int, int],
    prefix: int,
    mode: str,
) -> Weights:
    """The weights with the position table `name`, (1, prefix + patches, D), on the grid `new`.

    grids: what the table may have been made for, besides `new` and a square. mode: as in
    `resize.resize_grid`. A table for none of these grids stays as it is; loading then refuses it.
    """
    if name not in weights:
        return weights
    table = tensor(weights[name])
    if table.ndim != 3 or len(table) != 1:
        return weights
    patches = table.shape[1] - prefix
    side = isqrt(max(patches, 0))
    candidates = [grid for grid in (new, *grids, (side, side)) if grid[0] * grid[1] == patches > 0]
    if not candidates or candidates[0] == new:
        return weights
    return dict(weights) | {name: resize_grid(table[0], candidates[0], new, prefix, mode)[None]}


def backbone_of(model: Classifier) -> ResNetV2 | None:
    """A hybrid's ResNet; None for a plain Vision Transformer."""
    return getattr(model.encoder.patch_embed, "backbone", None)


def blocks_of(encoder: VisionTransformer) -> list[Block]:
    """The layers of `encoder`; ValueError if one is no Block, the only kind that formats know."""
    blocks = [block for block in encoder.layers if isinstance(block, Block)]
    if len(blocks) < len(encoder.layers):
        raise ValueError("only layers of class Block can be given to another program")
    return blocks


def units_of(backbone: ResNetV2) -> Iterator[tuple[int, int, Bottleneck | PreactivationBottleneck]]:
    """(stage, index within the stage, unit) of all units of `backbone`, both numbers from 0."""
    for stage, units in enumerate(backbone.stages):
        for index, unit in enumerate(units.children()):
            assert isinstance(unit, Bottleneck | PreactivationBottleneck)
            yield stage, index, unit


def classifier_only(peer: str, model: nn.Module) -> Classifier:
    """`model` as the Classifier that it is; ValueError for models that no peer with a head has."""
    if not isinstance(model, Classifier):
        raise ValueError(f"{peer} has a head: it takes a Classifier, not a {type(model).__name__}")
    fields = model.config
    refuse(
        peer,
        {
            f"images of up to {model.geometry.max_tiles} tiles": model.geometry.max_tiles > 1,
            "SwiGLUs in its Vision Transformer": fields.mlp == "swiglu",
            "RMSNorms in its Vision Transformer": fields.norm == "rms",
            "rotary positions in its Vision Transformer": model.encoder.rope is not None,
        },
    )
    return model
