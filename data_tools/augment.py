"""From a decoded image to its tiles; what is random is a pure function of (seed, position)."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_tools.errors import UsageError
from data_tools.order import AUGMENT, uniform
from data_tools.tiles import choose_canvas, resize, resize_with_pad, tile_crop

Image = NDArray[np.uint8]  # (H, W, 3)
Tiles = tuple[NDArray[np.uint8], int, int]  # (n, 3, S, S), rows, columns

_ATTEMPTS = 10
# Beyond this ratio of its sides only the middle of an image is enlarged for a centre crop: a row of
# 5000 pixels would otherwise ask for 750 MB.
_MAX_RATIO = 4


class Augment(Protocol):
    """The keys of data.augment."""

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool


class TrainTransform:
    """(image, position) -> (tiles, rows, columns) for training.

    With one tile: an Inception crop (Szegedy et al.: Going deeper with convolutions, 2014) of a
    share crop_scale of the area and width/height crop_ratio, resized to the tile; with crop_scale
    (1, 1) the whole image, whatever its ratio. With several tiles: a crop whose ratio is the
    image's own times crop_ratio (none with crop_scale (1, 1)), then the best canvas, padded at
    right and bottom.
    """

    def __init__(self, seed: int, tile_size: int, max_tiles: int, augment: Augment) -> None:
        _check_sizes(tile_size, max_tiles)
        _check_range("crop_scale", augment.crop_scale, upper=1.0)
        _check_range("crop_ratio", augment.crop_ratio, upper=math.inf)
        self.seed, self.tile_size, self.max_tiles = seed, tile_size, max_tiles
        self.scale, self.flip = tuple(augment.crop_scale), augment.flip
        self.ratio = tuple(augment.crop_ratio)

    def __call__(self, image: Image, position: int) -> Tiles:
        draws = uniform(self.seed, AUGMENT, position, np.arange(1 + 4 * _ATTEMPTS))
        if self.scale != (1.0, 1.0):
            height, width = image.shape[:2]
            own = width / height if self.max_tiles > 1 else 1.0
            ratio = own * self.ratio[0], own * self.ratio[1]
            top, left, high, wide = crop_box(height, width, self.scale, ratio, draws[1:])
            image = image[top : top + high, left : left + wide]
        if self.flip and draws[0] < 0.5:
            image = image[:, ::-1]
        if self.max_tiles > 1:
            return _tiled(image, self.tile_size, self.max_tiles)
        return _single(resize(_channels_first(image), self.tile_size, self.tile_size))


class EvalTransform:
    """(image, position) -> (tiles, rows, columns) for evaluation; nothing is random.

    With one tile: the short side resized to eval_resize (0: the tile size), then a centre crop.
    With several: as in training, without crop and flip.
    """

    def __init__(self, tile_size: int, max_tiles: int, eval_resize: int = 0) -> None:
        _check_sizes(tile_size, max_tiles)
        if eval_resize and eval_resize < tile_size:
            raise UsageError(
                f"data.eval_resize={eval_resize} is less than data.tile_size={tile_size}: "
                "set it to the tile size or more, or to 0."
            )
        self.tile_size, self.max_tiles = tile_size, max_tiles
        self.short_side = eval_resize or tile_size

    def __call__(self, image: Image, position: int) -> Tiles:
        if self.max_tiles > 1:
            return _tiled(image, self.tile_size, self.max_tiles)
        short = min(image.shape[:2])
        image = _centre(image, *(min(side, _MAX_RATIO * short) for side in image.shape[:2]))
        height, width = (max(self.short_side, self.short_side * n // short) for n in image.shape[:2])
        resized = resize(_channels_first(image), height, width).numpy()
        return _single(_centre(resized.transpose(1, 2, 0), self.tile_size, self.tile_size))


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width): share `scale` of the area, width/height in `ratio`.

    `draws`: four uniform numbers for each of ten attempts; if none fits, the largest central box
    whose ratio is allowed. (torchvision's RandomResizedCrop.get_params.)
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, aspect, down, right in draws.reshape(_ATTEMPTS, 4).tolist():
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + aspect * (high - low))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
    aspect = min(max(width / height, ratio[0]), ratio[1])
    wide = max(1, min(width, round(height * aspect)))
    tall = max(1, min(height, round(width / aspect)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _tiled(image: Image, tile_size: int, max_tiles: int) -> Tiles:
    rows, columns = choose_canvas(*image.shape[:2], tile_size, max_tiles)
    canvas = rows * tile_size, columns * tile_size
    padded = resize_with_pad(_channels_first(image), canvas, max_size=tile_size)
    return tile_crop(padded.numpy(), tile_size), rows, columns


def _single(image: Tensor | Image) -> Tiles:
    """One tile from a (3, S, S) tensor or an (S, S, 3) array."""
    array = image.numpy() if isinstance(image, Tensor) else image.transpose(2, 0, 1)
    return np.ascontiguousarray(array)[None], 1, 1


def _channels_first(image: Image) -> Tensor:
    """(3, H, W) in memory as (H, W, 3), on which torch's uint8 resize is fast.

    numpy copies a crop here: torch would do it with a team of threads in each decoding thread.
    """
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _centre(image: Image, height: int, width: int) -> Image:
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def _check_sizes(tile_size: int, max_tiles: int) -> None:
    for name, value in (("tile_size", tile_size), ("max_tiles", max_tiles)):
        if value < 1:
            raise UsageError(f"data.{name} must be at least 1, not {value}.")


def _check_range(name: str, values: tuple[float, float], upper: float) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= upper:
        limit = f" and at most {upper:g}" if upper < math.inf else ""
        raise UsageError(f"data.augment.{name}={list(values)} must be two rising numbers above 0{limit}.")
