"""The quickstart's pictures: the handwritten digits that come with scikit-learn, in many shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# (rows, columns) of 16-pixel tiles that a picture fills: 1, 2, 3 and 4 tiles occur.
SHAPES = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2))
TILE = 16
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(folder: Path, seed: int = 0) -> int:
    """Write 1797 PNG files as folder/CLASS/NUMBER.png and return their number.

    Each is one real 8x8 digit, drawn large at a random place of a dark picture of random size.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / f"{label}_{NAMES[label]}"
        target.mkdir(parents=True, exist_ok=True)
        _picture(pixels, rng).save(target / f"{number:04d}.png")
    return len(digits.images)


def _picture(pixels: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """pixels: 8x8 in 0..16."""
    rows, columns = SHAPES[rng.integers(len(SHAPES))]
    height = round(TILE * (rows - 1 + rng.uniform(0.8, 1.0)))
    width = round(TILE * (columns - 1 + rng.uniform(0.8, 1.0)))
    side = round(min(height, width) * rng.uniform(0.85, 1.0))
    glyph = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (width, height))
    corner = (int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)))
    picture.paste(Image.merge("RGB", (glyph,) * 3), corner)
    return picture
