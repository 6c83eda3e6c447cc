"""TileProcessor against torchtune's CLIPImageTransform."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import TileProcessor


def test_tiles_are_torchtunes(shared: Callable[[str], Path]) -> None:
    with np.load(shared("golden/tile_preprocess.npz"), allow_pickle=False) as data:
        cases = json.loads(str(data["config_json"]))["clip_transform"]
        for place, case in enumerate(cases):
            theirs = {
                key: data[f"clip_transform/{place}/{key}"]
                for key in ("in_uint8_hwc", "image", "aspect_ratio")
            }
            names = (
                "tile_size",
                "max_num_tiles",
                "resize_to_max_canvas",
                "resample",
                "image_mean",
                "image_std",
            )
            processor = TileProcessor(**{name: case[name] for name in names}, dtype=torch.float32)
            found = processor(Image.fromarray(theirs["in_uint8_hwc"]))
            np.testing.assert_allclose(found.pixel_values[0], theirs["image"], atol=1e-5)
            assert found.aspect_ratio[0].tolist() == theirs["aspect_ratio"].tolist()


def test_several_images_and_own_canvases() -> None:
    processor = TileProcessor(tile_size=8, possible_resolutions=[(8, 24), (16, 8)], resample="nearest_exact")
    wide, tall = np.zeros((8, 40, 3), np.uint8), np.full((3, 40, 8), 1.0)
    found = processor([wide, tall])
    assert [tuple(tiles.shape) for tiles in found.pixel_values] == [(3, 3, 8, 8), (2, 3, 8, 8)]
    assert found.aspect_ratio.tolist() == [[1, 3], [2, 1]] and found.pixel_values[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"resample": "lanczos"}, "resample must be one of"),
        ({"image_mean": [0.5] * 3}, "both or none"),
        ({"max_num_tiles": None}, "possible_resolutions or max_num_tiles"),
        ({"possible_resolutions": [(8, 9)], "tile_size": 8}, "no multiple of tile_size 8"),
    ],
)
def test_wrong_values_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TileProcessor(**arguments)
