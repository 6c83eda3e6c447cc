"""What a stranger's file says about its model: every value of the right type, no size beyond the file's own.

A description is checked before anything is built from it: one that lies costs neither time nor memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_tools.errors import DataError, UsageError

from ..config.schema import DataConfig, ModelConfig
from ..model.embeddings import sides
from ..model.variants import Architecture, resolve
from .facts import PREPROCESSING
from .manifest import shortened

LARGEST = 2**31  # no size of a model comes near it
# Positions that are interpolated to a larger image may be this many numbers, where the file holds fewer.
POSITIONS = 2**24
LARGEST_RESIZE = 16  # the short side before the crop, in tiles

Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Size = Annotated[int, Field(ge=1, lt=LARGEST)]
Deviation = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """A JSON object whose values have exactly these types; no NaN, no infinity, no text for a number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(Strict):
    """The keys of `facts.PREPROCESSING`; those that an older version did not write may be missing."""

    model_config = ConfigDict(extra="ignore")

    tile_size: Size = 224
    max_tiles: Size = 1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    eval_resize: Count = 0
    eval_crop: bool = True
    eval_resample: Literal["bicubic", "bilinear"] = "bicubic"
    max_pixels: Size = 1


class Facts(Strict):
    """The keys of `weights_file.FACTS`."""

    step: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig
    num_classes: Count
    classes: list[str] | None = None
    objective: Literal["softmax", "sigmoid", "regression", "masked_patches"] = "softmax"
    preprocessing: Preprocessing


def parse_strictly(schema: type[Strict], content: str | bytes, name: str) -> dict[str, Any]:
    """The JSON object `content`, of which every value fits `schema`; defaults are not filled in.

    name: what the error calls it. Raises DataError that names the first value that does not fit.
    """
    try:
        found: dict[str, Any] = json.loads(content)
        schema.model_validate_json(content)
    except ValidationError as error:
        # A value may be of one kind or another: the error of the kind that it fits best goes deepest.
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        key = ".".join(_keys(found, first["loc"]))
        if first["type"] == "missing":
            key = ".".join(map(str, first["loc"]))
        value = f"{key} is {shortened(first['input'])}: " if key else ""
        raise DataError(f"{name}: damaged, or no description of a model: {value}{first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: damaged, or no description of a model: {error}") from None
    return found


def _keys(found: Any, place: Sequence[int | str]) -> Iterator[str]:
    """The keys on the way to a place of pydantic's, which also holds the names of types between them."""
    for key in place:
        with suppress(LookupError, TypeError):
            found = found[key]
            yield str(key)


def read_facts(content: str | bytes, name: str) -> dict[str, Any]:
    """The facts of `weights_file.FACTS` in the JSON text `content`. Raises DataError as `parse_strictly`."""
    facts = {"classes": None} | parse_strictly(Facts, content, name)
    given: dict[str, Any] = facts["preprocessing"]
    if unknown := sorted(given.keys() - {item.name for item in fields(DataConfig)}):
        raise DataError(f"{name}: its preprocessing has {shortened(unknown[0])}, which this version has not")
    known = {key: value for key, value in given.items() if key in PREPROCESSING}
    facts["preprocessing"] = {"tile_size": 224, "max_tiles": 1} | known
    classes = facts["classes"] or []
    if facts.get("objective", "softmax") in ("softmax", "sigmoid") and len(classes) > facts["num_classes"]:
        raise DataError(f"{name}: damaged: it names {len(classes)} classes, but has {facts['num_classes']}")
    return facts


def check_sizes(
    config: ModelConfig,
    tile_size: int | tuple[int, int],
    max_tiles: int,
    num_classes: int,
    channels: int,
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Raises UsageError for a described model that the tensors of its file cannot hold.

    tile_size, max_tiles, num_classes, channels (of the images): as in `Classifier`; shapes: of the file's
    tensors. A matrix must not have more numbers than the whole file, and there must not be more layers than
    tensors.
    """
    numbers = {"num_classes": num_classes, "the number of channels": channels, "max_tiles": max_tiles}
    numbers |= {f"model.{key}": value for key, value in _integers(asdict(config))}
    numbers |= {"the image size": max(sides(tile_size))}
    for key, number in numbers.items():
        if abs(number) >= LARGEST:
            raise UsageError(f"{key} is {shortened(number)}, which no model has")
    for key, value in (("norm_eps", config.norm_eps), ("backbone.norm_eps", _backbone_eps(config))):
        if not 0 <= value <= 1:
            raise UsageError(f"model.{key} is {value}, but must be between 0 and 1")
    if channels < 1:
        raise UsageError(f"the number of channels is {channels}, but must be above 0")
    arch = resolve(config)
    units = sum(arch.backbone.depths) if arch.backbone else 0
    if arch.num_layers + units > len(shapes):
        raise UsageError(f"model.num_layers is {arch.num_layers}, but the file holds {len(shapes)} tensors")
    held = sum(prod(shape) for shape in shapes.values())
    for key, count in _matrices(config, arch, num_classes, channels).items():
        if count > held:
            raise UsageError(f"{key} needs {count} numbers, but the file holds {held}")
    patches = prod(arch.grid(side) for side in sides(tile_size))
    positions = patches * arch.embed_dim * (max_tiles**2 if max_tiles > 1 else 1)
    if positions > max(held, POSITIONS):
        raise UsageError(f"the image size needs {positions} numbers of positions, but the file holds {held}")


def _matrices(config: ModelConfig, arch: Architecture, classes: int, channels: int) -> dict[str, int]:
    """{what decides about it: the number of values} of the largest parameters of a model."""
    width, hidden = arch.embed_dim, config.head_hidden or arch.embed_dim
    found = {
        "model.embed_dim": 3 * width * width,
        "model.mlp_dim": width * arch.mlp_dim,
        "model.registers": width * config.registers,
        "model.head_hidden": width * hidden if config.head == "mlp" else 0,
        "num_classes": classes * (hidden if config.head == "mlp" else width),
    }
    if arch.backbone is None:
        return found | {"model.patch_size": channels * arch.patch_size**2 * width}
    backbone = arch.backbone
    before = [backbone.stem, *backbone.widths]
    stages = zip(before, backbone.widths, strict=False)
    last = before[len(backbone.depths)] * arch.patch_size**2 * width
    return found | {
        "model.backbone.stem": 49 * channels * backbone.stem,
        "model.backbone.widths": max((here * after for here, after in stages), default=0) // 16,
        "model.patch_size": last,
    }


def _backbone_eps(config: ModelConfig) -> float:
    return config.backbone.norm_eps if config.backbone else 0.0


def _integers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """(key, value) of all integers, also those in groups and lists."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _integers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, value
        elif isinstance(value, list):
            yield from ((prefix + key, item) for item in value if isinstance(item, int))
