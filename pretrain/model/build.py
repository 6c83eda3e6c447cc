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


def model_text(config: Config) -> str:
    """The name of the model, and which of its sizes are not those of the name."""
    sizes = ("patch_size", "embed_dim", "num_layers", "num_heads", "mlp_dim")
    own = {key: getattr(config.model, key) for key in sizes if getattr(config.model, key) is not None}
    return config.model.name + (f" with {', '.join(f'{k}={v}' for k, v in own.items())}" if own else "")
