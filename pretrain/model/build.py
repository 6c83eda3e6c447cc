"""The model that a configuration asks for."""

from __future__ import annotations

from ..config.schema import Config
from .classifier import Classifier
from .masked import MaskedPatches

Model = Classifier | MaskedPatches


def build_model(config: Config, num_classes: int) -> Model:
    """The model of a configuration, on the current default device; num_classes: of the data."""
    data = config.data
    pixels = {"tile_size": data.tile_size, "max_tiles": data.max_tiles, "mean": data.mean, "std": data.std}
    if config.objective.name == "masked_patches":
        return MaskedPatches(config.model, **pixels, seed=config.run.seed)
    return Classifier(config.model, num_classes=num_classes, **pixels)
