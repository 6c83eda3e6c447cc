"""Runs torchtune itself on random weights and writes what it computes to tests/references/arrays.

    pip install --no-deps torchtune==0.6.1
    python tests/references/record.py

Only its Vision Transformer is run: what the rest of torchtune imports is replaced by stand-ins.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

MISSING = (
    "blobfile",
    "datasets",
    "kagglehub",
    "regex",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "torchao",
    "torchdata",
    "torchvision",
    "transformers",
)  # what torchtune imports
ARRAYS = Path(__file__).parent / "arrays"
CONFIG: dict[str, Any] = {
    "tile_size": 12,
    "patch_size": 4,
    "embed_dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "use_rope": True,
    "out_indices": [1],
}
CASES = {"tiles": {"max_num_tiles": 4}, "one_tile_class_last": {"max_num_tiles": 1, "append_cls_token": True}}


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that have every attribute."""

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in MISSING:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__name__, module.__path__, module.__version__ = spec, spec.name, [], "0.12.0"
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    sys.path.pop(0)  # this folder has modules of the same names
    sys.meta_path.insert(0, _StandIns())
    from torchtune.models.clip._component_builders import clip_vision_encoder

    ARRAYS.mkdir(exist_ok=True)
    for name, own in CASES.items():
        config = CONFIG | own
        generator = torch.Generator().manual_seed(1)
        model = clip_vision_encoder(**config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # of a grid that float32 holds exactly
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * 64).round() / 256)
        tiles = config["max_num_tiles"]
        images = (torch.randn(2, 1, tiles, 3, 12, 12, generator=generator) * 32).round() / 32
        side = round(tiles**0.5)
        ratio = torch.tensor([[[side, side]], [[1, tiles]]])
        with torch.no_grad():
            x, hidden = model(images, ratio)
        arrays = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        arrays |= {"inputs/images": images.numpy(), "inputs/aspect_ratio": ratio.numpy()}
        arrays |= {"outputs/x": x.numpy(), "outputs/hidden_0": hidden[0].numpy()}
        np.savez_compressed(ARRAYS / f"torchtune_rope_{name}.npz", config_json=json.dumps(config), **arrays)


if __name__ == "__main__":
    main()
