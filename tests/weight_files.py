"""Files of weights as `python -m finetune export --format safetensors` writes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain.checkpoints.weights_file import METADATA_KEY
from pretrain.config.schema import Config, DataConfig, ModelConfig
from pretrain.model.build import build_model
from pretrain.model.init import initialize

SIZES = {"embed_dim": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 48, "patch_size": 4}
DATA = {"tile_size": 16, "max_tiles": 1, "eval_resize": 20, "mean": (0.4, 0.5, 0.6), "std": (0.5, 0.4, 0.3)}
COLOURS = ["blue", "green", "red"]


def write_weights(
    path: Path, classes: list[str] | None = COLOURS, outputs: int = 3, **fields: object
) -> Path:
    """The file of a small classifier; classes: their names, which need not be as many as the outputs."""
    config = ModelConfig(**({"name": "vit_ti16", "head": "linear"} | SIZES | fields))
    model = build_model(Config(model=config, data=DataConfig(**DATA)), outputs)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    facts = {"step": 1, "model": asdict(config), "num_classes": outputs, "classes": classes}
    facts |= {"objective": "softmax", "preprocessing": asdict(DataConfig(**DATA))}
    save_file(dict(model.state_dict()), path, metadata={METADATA_KEY: json.dumps(facts)})
    return path
