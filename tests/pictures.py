"""Pictures that the tests train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """Noisy pictures of many sizes whose class shows in their colour."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % 3
        rows, columns = ((1, 1), (1, 2), (3, 1), (2, 2), (1, 3), (2, 1))[number % 6]
        height, width = 16 * rows - int(rng.integers(5)), 16 * columns - int(rng.integers(5))
        pixels = rng.integers(0, 120, (height, width, 3))
        pixels[..., label] += 100
        target = folder / ("red", "green", "blue")[label] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(target)
