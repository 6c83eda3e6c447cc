"""The model that a configuration asks for."""

from __future__ import annotations

from ..config.schema import Config
from .classifier import Classifier
from .masked import MaskedPatches

Model = Classifier | MaskedPatches


def build_model(config: Config, num_classes: int) -> Model:
    """The model of a configuration, on the current default device; num_classes: of the data.

    Raises UsageError for a configuration that does not fit together.
    """
    data = config.data
    size, tiles, mean, std = data.tile_size, data.max_tiles, data.mean, data.std
    if config.objective.name == "masked_patches":
        seed = config.run.seed
        return MaskedPatches(config.model, tile_size=size, max_tiles=tiles, mean=mean, std=std, seed=seed)
    return Classifier(
        config.model, tile_size=size, max_tiles=tiles, num_classes=num_classes, mean=mean, std=std
    )


def model_text(config: Config) -> str:
    """The name of the model, and the sizes that the configuration sets itself."""
    sizes = ("patch_size", "embed_dim", "num_layers", "num_heads", "mlp_dim")
    own = {key: getattr(config.model, key) for key in sizes if getattr(config.model, key) is not None}
    return config.model.name + (f" with {', '.join(f'{k}={v}' for k, v in own.items())}" if own else "")
