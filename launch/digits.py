"""The quickstart's pictures: the handwritten digits that come with scikit-learn, in many shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# (rows, columns) of 16-pixel tiles that a picture fills: 1, 2, 3 and 4 tiles occur.
SHAPES = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2))
TILE = 16
HELD_OUT = 0.2
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(folder: Path, seed: int = 0) -> None:
    """Write PNG files as folder/train/CLASS/*.png and folder/val/CLASS/*.png.

    The 1797 digits are split once. One for training gives a picture in each of the shapes; one that is held
    out gives a single picture, in a shape drawn at random.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    held_out = set(rng.permutation(len(digits.images))[: round(HELD_OUT * len(digits.images))].tolist())
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if number in held_out else "train"
        shapes = [SHAPES[rng.integers(len(SHAPES))]] if split == "val" else SHAPES
        target = folder / split / f"{label}_{NAMES[label]}"
        target.mkdir(parents=True, exist_ok=True)
        for rows, columns in shapes:
            _picture(pixels, rows, columns, rng).save(target / f"{number:04d}_{rows}x{columns}.png")


def _picture(pixels: np.ndarray, rows: int, columns: int, rng: np.random.Generator) -> Image.Image:
    """An 8x8 digit with values in 0..16, stretched to nearly fill a picture of rows x columns tiles."""
    height = round(TILE * (rows - 1 + rng.uniform(0.8, 1.0)))
    width = round(TILE * (columns - 1 + rng.uniform(0.8, 1.0)))
    size = (round(width * rng.uniform(0.85, 1.0)), round(height * rng.uniform(0.85, 1.0)))
    glyph = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (width, height))
    corner = (int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1)))
    picture.paste(Image.merge("RGB", (glyph,) * 3), corner)
    return picture
