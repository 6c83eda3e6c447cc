"""A small model as a file of `finetune export`, without training it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pretrain.checkpoints.weights_file import METADATA_KEY
from pretrain.config.schema import Config, DataConfig, ModelConfig, ObjectiveConfig
from pretrain.model.build import build_model
from pretrain.model.init import initialize

SIZES = {"embed_dim": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 48, "patch_size": 4}
DATA = {"tile_size": 16, "max_tiles": 1, "eval_resize": 20, "mean": (0.4, 0.5, 0.6), "std": (0.5, 0.4, 0.3)}


COLOURS = ("blue", "green", "red")


def facts_of(
    objective: str = "softmax",
    classes: Sequence[str] | None = COLOURS,
    outputs: int = 3,
    **fields: object,
) -> dict[str, Any]:
    """What a file says about a small classifier; classes: names, which need not be as many as the outputs."""
    config = ModelConfig(**({"name": "vit_ti16", "head": "linear"} | SIZES | fields))
    facts = {"step": 1, "model": asdict(config), "num_classes": outputs}
    facts["classes"] = None if classes is None else list(classes)
    return facts | {"objective": objective, "preprocessing": asdict(DataConfig(**DATA))}


def write_weights(path: Path, classes: Sequence[str] | None = COLOURS, **fields: Any) -> Path:
    """A file as `export --format safetensors` writes it, of a small classifier of three colours."""
    facts = facts_of(classes=classes, **fields)
    config = Config(model=ModelConfig(**facts["model"]), data=DataConfig(**DATA))
    config.objective = ObjectiveConfig(name=facts["objective"])
    model = build_model(config, facts["num_classes"])
    facts["num_classes"] = model.num_classes
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    save_file(dict(model.state_dict()), path, metadata={METADATA_KEY: json.dumps(facts)})
    return path


def rewrite(path: Path, facts: dict[str, Any] | str, **tensors: torch.Tensor | None) -> Path:
    """The same file with another description, and other tensors by name (None: without it)."""
    text = facts if isinstance(facts, str) else json.dumps(facts)
    kept = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(kept, path, metadata={METADATA_KEY: text})
    return path
