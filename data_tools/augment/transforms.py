"""From an image to its tiles. All random numbers are a pure function of (seed, position)."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_tools.augment.randaugment import RandAugment
from data_tools.errors import UsageError
from data_tools.images.decode import Decoded, Picture, Pixels
from data_tools.images.tiles import Resample, choose_canvas, cut_tiles, fitted_size, resize
from data_tools.random_numbers import Stream, hash64, uniform

Tiles = tuple[NDArray[np.uint8], int, int]  # (n, 3, S, S), rows, columns

_ATTEMPTS = 10
# Random erasing: Zhong et al., Random erasing data augmentation, 2017, table 1.
_ERASED_SHARE = (0.02, 0.4)
_ERASED_RATIO = (0.3, 1 / 0.3)
# Of an image with a larger ratio of its sides only the middle is resized before a centre crop: an image of
# 5000 x 1 pixels would otherwise need 750 MB.
_MAX_RATIO = 4


class Augment(Protocol):
    """The keys of data.augment that concern one image."""

    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool
    randaugment_ops: int
    randaugment_magnitude: int
    erase: float


class TrainTransform:
    """(image, position) -> (tiles, rows, columns) for training.

    With max_tiles 1: an Inception crop (Szegedy et al.: Going deeper with convolutions, 2014), which has
    a share of the area in the range crop_scale and a width/height in the range crop_ratio, resized to the
    tile; with crop_scale (1, 1) the whole image, whatever its ratio. With more tiles: a crop whose ratio
    is that of the image times crop_ratio (no crop with crop_scale (1, 1)), resized to the best canvas and
    padded at the right and at the bottom. Mirroring, RandAugment and random erasing follow, in this order,
    on the resized image before it is padded. Only the crop is decoded. UsageError for values that cannot
    work.
    """

    def __init__(self, seed: int, tile_size: int, max_tiles: int, augment: Augment) -> None:
        _check_sizes(tile_size, max_tiles)
        _check_range("crop_scale", augment.crop_scale, upper=1.0)
        _check_range("crop_ratio", augment.crop_ratio, upper=math.inf)
        if not 0 <= augment.erase <= 1:
            raise UsageError(f"data.augment.erase={augment.erase} is a probability: set it to 0 to 1.")
        self.seed, self.tile_size, self.max_tiles = seed, tile_size, max_tiles
        self.scale, self.flip = (augment.crop_scale[0], augment.crop_scale[1]), augment.flip
        self.ratio, self.erase = (augment.crop_ratio[0], augment.crop_ratio[1]), augment.erase
        self.randaugment = RandAugment(seed, augment.randaugment_ops, augment.randaugment_magnitude)

    def __call__(self, image: Picture | Pixels, position: int) -> Tiles:
        picture = _as_picture(image)
        draws = self.draws(position)
        pixels = picture.region(*self.box(picture.height, picture.width, draws))
        resized, rows, columns = fit(pixels, self.tile_size, self.max_tiles)
        if self.flip and draws[0] < 0.5:
            resized = _mirrored(resized)
        if self.randaugment.ops:
            resized = self.randaugment(resized, position)
        if self.erase:
            resized = _erase(resized, self.erase, self.seed, position)
        return cut_tiles(resized, rows, columns, self.tile_size), rows, columns

    def draws(self, position: int) -> NDArray[np.float64]:
        """The uniform numbers (41,) of an image: one for mirroring, the others for its box."""
        return uniform(self.seed, Stream.AUGMENT, position, np.arange(1 + 4 * _ATTEMPTS))

    def box(self, height: int, width: int, draws: NDArray[np.float64]) -> tuple[int, int, int, int]:
        """The box (top, left, height, width) of an image of height x width that is used."""
        if self.scale == (1.0, 1.0):
            return 0, 0, height, width
        own = width / height if self.max_tiles > 1 else 1.0
        return crop_box(height, width, self.scale, (own * self.ratio[0], own * self.ratio[1]), draws[1:])


class EvalTransform:
    """(image, position) -> (tiles, rows, columns) for evaluation; nothing is random.

    With max_tiles 1: the short side is resized to eval_resize pixels (0: the tile size), then comes a
    centre crop; or, with crop False, the whole image is resized to the tile, whatever its ratio. With more
    tiles: as in training, but without crop and mirroring. resample: how pixels are interpolated.
    UsageError for an eval_resize below the tile size.
    """

    def __init__(
        self,
        tile_size: int,
        max_tiles: int,
        eval_resize: int = 0,
        crop: bool = True,
        resample: Resample = "bicubic",
    ) -> None:
        _check_sizes(tile_size, max_tiles)
        if eval_resize and eval_resize < tile_size:
            raise UsageError(
                f"data.eval_resize={eval_resize} is less than data.tile_size={tile_size}: "
                "set it to the tile size or more, or to 0."
            )
        self.tile_size, self.max_tiles = tile_size, max_tiles
        self.short_side = eval_resize or tile_size
        self.crop, self.resample = crop, resample

    def __call__(self, image: Picture | Pixels, position: int) -> Tiles:
        picture = _as_picture(image)
        sides = picture.height, picture.width
        if self.max_tiles > 1:
            pixels = picture.region(0, 0, *sides)
            resized, rows, columns = fit(pixels, self.tile_size, self.max_tiles, self.resample)
            return cut_tiles(resized, rows, columns, self.tile_size), rows, columns
        if not self.crop:
            return fit(picture.region(0, 0, *sides), self.tile_size, 1, self.resample)[0][None], 1, 1
        short = min(sides)
        pixels = picture.region(*_centre(*sides, *(min(side, _MAX_RATIO * short) for side in sides)))
        height, width = (max(self.short_side, self.short_side * n // short) for n in pixels.shape[:2])
        resized = resize(_channels_first(pixels), height, width, self.resample).numpy()
        top, left, high, wide = _centre(height, width, self.tile_size, self.tile_size)
        return resized[None, :, top : top + high, left : left + wide], 1, 1


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width), as in torchvision's RandomResizedCrop.get_params.

    Its share of the area is in the range `scale`, its width/height in the range `ratio`. draws (40,): four
    uniform numbers for each of ten attempts. If no attempt fits: the largest central box of an allowed
    ratio.
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


def fit(pixels: Pixels, tile_size: int, max_tiles: int, resample: Resample = "bicubic") -> Tiles:
    """(H, W, 3) resized for its best canvas, not padded: (3, h, w), and the rows and columns of its tiles."""
    if max_tiles == 1:
        return resize(_channels_first(pixels), tile_size, tile_size, resample).numpy(), 1, 1
    height, width = pixels.shape[:2]
    rows, columns = choose_canvas(height, width, tile_size, max_tiles)
    size = fitted_size(height, width, (rows * tile_size, columns * tile_size), max_size=tile_size)
    return resize(_channels_first(pixels), *size, resample).numpy(), rows, columns


def _as_picture(image: Picture | Pixels) -> Picture:
    return Decoded(image) if isinstance(image, np.ndarray) else image


def _channels_first(image: Pixels) -> Tensor:
    """(H, W, 3) to (3, H, W), still (H, W, 3) in memory, because torch resizes such uint8 images fast.

    numpy copies a crop here; torch would start a team of threads in each decoding thread.
    """
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, H, W), (H, W, 3) in memory; one colour after the other, because numpy then copies fastest."""
    colours, height, width = image.shape
    mirrored = np.empty((height, width, colours), np.uint8).transpose(2, 0, 1)
    for target, source in zip(mirrored, image, strict=True):
        target[...] = source[:, ::-1]
    return mirrored


def _erase(image: NDArray[np.uint8], probability: float, seed: int, position: int) -> NDArray[np.uint8]:
    """(3, H, W), with the given probability with a box of random bytes in it, whose ratio is log-uniform."""
    draws = uniform(seed, Stream.ERASE, position, np.arange(1 + 4 * _ATTEMPTS))
    if draws[0] >= probability:
        return image
    top, left, high, wide = crop_box(image.shape[1], image.shape[2], _ERASED_SHARE, _ERASED_RATIO, draws[1:])
    noise = hash64(seed, Stream.ERASE, position, 0, np.arange(-(-3 * high * wide // 8)))
    image = image.copy(order="K")
    image[:, top : top + high, left : left + wide] = (
        noise.astype("<u8").view(np.uint8)[: 3 * high * wide].reshape(3, high, wide)
    )
    return image


def _centre(height: int, width: int, high: int, wide: int) -> tuple[int, int, int, int]:
    """The box (top, left, high, wide) in the middle of height x width."""
    return (height - high) // 2, (width - wide) // 2, high, wide


def _check_sizes(tile_size: int, max_tiles: int) -> None:
    for name, value in (("tile_size", tile_size), ("max_tiles", max_tiles)):
        if value < 1:
            raise UsageError(f"data.{name} must be at least 1, not {value}.")


def _check_range(name: str, values: tuple[float, float], upper: float) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1] <= upper:
        limit = f" and at most {upper:g}" if upper < math.inf else ""
        raise UsageError(f"data.augment.{name}={list(values)} must be two rising numbers above 0{limit}.")
