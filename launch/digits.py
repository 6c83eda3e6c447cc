"""The quickstart's pictures: scikit-learn's handwritten digits in many shapes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

# (rows, columns) of 16-pixel tiles that a picture fills: 1, 2, 3 and 4 tiles occur.
SHAPES = ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2))
TILE = 16
HELD_OUT = 0.2
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The largest random changes of pictures for training: degrees of rotation, and pixels of slant per row.
TURN, SLANT = 8.0, 0.08


def write_digits(folder: Path, seed: int = 0) -> None:
    """Write PNG files as folder/train/CLASS/*.png and folder/val/CLASS/*.png.

    The 1797 digits are split into train and val at random. Each gives one picture in each of SHAPES; pictures
    for training are rotated and slanted a little. seed: of all random choices.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    held_out = set(rng.permutation(len(digits.images))[: round(HELD_OUT * len(digits.images))].tolist())
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if number in held_out else "train"
        target = folder / split / f"{label}_{NAMES[label]}"
        target.mkdir(parents=True, exist_ok=True)
        for rows, columns in SHAPES:
            glyph = _glyph(pixels)
            if split == "train":
                glyph = _varied(glyph, rng)
            _picture(glyph, rows, columns, rng).save(target / f"{number:04d}_{rows}x{columns}.png")


def _glyph(pixels: np.ndarray) -> Image.Image:
    """An 8x8 digit with values in 0..16 as a grey picture of 32x32 pixels."""
    grey = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
    return grey.resize((2 * TILE, 2 * TILE), Image.Resampling.BICUBIC)


def _varied(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The digit rotated and slanted about its centre, at random."""
    turn, slant = math.radians(rng.uniform(-TURN, TURN)), rng.uniform(-SLANT, SLANT)
    inverse = np.array([[math.cos(turn), slant - math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    middle = np.full(2, (glyph.width - 1) / 2)
    shift = middle - inverse @ middle
    rows = np.column_stack([inverse, shift])
    return glyph.transform(glyph.size, Image.Transform.AFFINE, tuple(rows.ravel()), Image.Resampling.BICUBIC)


def _picture(glyph: Image.Image, rows: int, columns: int, rng: np.random.Generator) -> Image.Image:
    """The digit stretched so that it nearly fills a picture of rows x columns tiles."""
    height = round(TILE * (rows - 1 + rng.uniform(0.9, 1.0)))
    width = round(TILE * (columns - 1 + rng.uniform(0.9, 1.0)))
    size = (round(width * rng.uniform(0.92, 1.0)), round(height * rng.uniform(0.92, 1.0)))
    picture = Image.new("RGB", (width, height))
    corner = (int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1)))
    stretched = glyph.resize(size, Image.Resampling.BICUBIC)
    picture.paste(Image.merge("RGB", (stretched,) * 3), corner)
    return picture
