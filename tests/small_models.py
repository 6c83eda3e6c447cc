"""Fixtures: small models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pretrain.config.schema import ModelConfig
from pretrain.model.classifier import Classifier
from pretrain.model.init import initialize

PIXELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture
def small_config() -> Callable[..., ModelConfig]:
    def config(**fields: object) -> ModelConfig:
        sizes = {"embed_dim": 32, "num_heads": 4, "num_layers": 2, "mlp_dim": 48, "patch_size": 8}
        return ModelConfig(**({"name": "vit_ti16"} | sizes | fields))

    return config


@pytest.fixture
def small(small_config) -> Callable[..., Classifier]:
    """Builds a small classifier for tiles of 32 pixels, with other fields where asked for.

    noise: added to the initial weights, so that gates, heads and biases are not zero.
    """

    def build(max_tiles: int = 1, noise: float = 0.0, tile_size: int = 32, **fields: object) -> Classifier:
        model = Classifier(
            small_config(**fields),
            tile_size=tile_size,
            max_tiles=max_tiles,
            num_classes=5,
            **PIXELS,
        )
        initialize(model, seed=0)
        add_noise(model, noise)
        return model.eval()

    return build


def add_noise(model: torch.nn.Module, noise: float) -> None:
    """Add `noise` times the same normal numbers to all parameters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
