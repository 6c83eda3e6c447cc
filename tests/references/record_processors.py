"""Runs transformers' image processors themselves and writes what they compute to tests/references/arrays.

    pip install --no-deps --target OLD transformers==4.40.2
    pip install --no-deps --target NEW transformers==4.57.1
    PYTHONPATH=OLD python tests/references/record_processors.py hybrid
    PYTHONPATH=NEW python tests/references/record_processors.py vit

What the rest of transformers imports is replaced by stand-ins.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np

ARRAYS = Path(__file__).parent / "arrays"
# And the tokenizers that they ask for.
VERSIONS = {"hybrid": ("4.40.2", "0.19.1"), "vit": ("4.57.1", "0.22.0")}
HALF = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
# Arguments of each call, beside size and crop_size of 8 pixels; for both processors unless it is a crop.
CALLS: list[dict[str, Any]] = [
    {},
    *({"resample": number} for number in range(6)),
    {"do_resize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 0.01},
    {"do_normalize": False},
    HALF,
    {"image_mean": 0.5, "image_std": 0.25},
    {"data_format": "channels_last"},
    {"size": {"height": 6, "width": 10}},
    {"size": {"height": 6, "width": 10}, "do_rescale": False, "do_normalize": False},
]
CROPS: list[dict[str, Any]] = [
    {"do_center_crop": False},
    {"size": {"shortest_edge": 11}},
    {"size": {"shortest_edge": 6}, "crop_size": {"height": 9, "width": 12}},
    {"do_resize": False, "crop_size": {"height": 41, "width": 4}},
    {"do_resize": False, "do_normalize": False, "crop_size": {"height": 16, "width": 15}},
]  # larger by an even number: of an odd one 4.40.2 loses a row, later versions do not


def picture(number: int) -> np.ndarray:
    """One of 20 random images, of sides of 7 to 40 pixels."""
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (*generator.integers(7, 41, 2), 3), dtype=np.uint8)


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that have every attribute."""

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in ("tokenizers", "huggingface_hub", "regex"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__name__, module.__path__, module.__version__ = spec, spec.name, [], "0.34.0"
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def processor(kind: str) -> Any:
    """A processor of transformers with its own defaults, but of 8 pixels."""
    found = importlib.metadata.version
    usual = {"tokenizers": VERSIONS[kind][1], "huggingface-hub": "0.34.0", "regex": "2025.1.1"}
    usual |= {"filelock": "3.20", "requests": "2.32", "tqdm": "4.67", "packaging": "25.0"}

    def version(name: str) -> str:
        return usual[name] if name in usual else found(name)

    importlib.metadata.version = version
    sys.meta_path.insert(0, _StandIns())
    import transformers

    assert transformers.__version__ == VERSIONS[kind][0]
    if kind == "vit":
        from transformers.models.vit.image_processing_vit import ViTImageProcessor

        return ViTImageProcessor(size={"height": 8, "width": 8})
    from transformers.models.vit_hybrid.image_processing_vit_hybrid import ViTHybridImageProcessor

    return ViTHybridImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def main() -> None:
    kind = sys.argv[1]
    theirs = processor(kind)
    calls = CALLS + (CROPS if kind == "hybrid" else [])
    calls = [{"image": number, "call": call} for number, call in enumerate(calls)]
    calls += [{"image": number, "call": {}} for number in range(len(calls), 20)]
    shares: list[dict[str, Any]] = [{"do_rescale": False}, {"do_resize": False}]
    floats = [{"image": 0, "call": call, "share": True} for call in shares]
    arrays = {}
    for place, case in enumerate([*calls, *floats]):
        image = picture(case["image"])
        image = image.astype(np.float32) / 255 if "share" in case else image
        found = theirs(image, **case["call"])["pixel_values"][0]
        arrays[f"{place}"] = found
    text = json.dumps([*calls, *floats])
    np.savez_compressed(ARRAYS / f"processor_{kind}.npz", cases=text, **arrays)


if __name__ == "__main__":
    main()
