"""The models. Names are resolved at first use, so that checking a configuration does not import torch."""

from importlib import import_module
from typing import Any

_HOME = {
    "AttentionPool": "heads",
    "Block": "block",
    "ClassEmbedding": "embeddings",
    "ClassProjection": "embeddings",
    "Classifier": "classifier",
    "Geometry": "resize",
    "PatchEmbedding": "embeddings",
    "TilePositionalEmbedding": "embeddings",
    "TiledTokenPositionalEmbedding": "embeddings",
    "TokenPositionalEmbedding": "embeddings",
    "VisionTransformer": "vit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
