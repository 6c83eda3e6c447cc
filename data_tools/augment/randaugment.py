"""RandAugment (Cubuk et al., arXiv 1909.13719), with the strengths of big_vision's randaug(ops, magnitude).

With m = magnitude / 10, as in the recipes of AugReg (Steiner et al., arXiv 2106.10270):
rotation by 30 m degrees, shear 0.3 m, translation by 100 m of 224 pixels (here the same share of the
side), each in a random direction; colour, contrast, brightness, sharpness times 1.8 m + 0.1; posterize
keeps 4 m bits and solarize inverts values from 256 m on, so these two become weaker as m grows, and
solarize does nothing from m = 1 on. Differences from big_vision: no cutout and no solarize-add; bilinear
instead of nearest pixels; posterize keeps at least one bit. Pixels from outside of the image are grey (128).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from data_tools.errors import UsageError
from data_tools.random_numbers import Stream, uniform

_MAX_MAGNITUDE = 30
_GREY = (128, 128, 128)
_TRANSLATION = 100 / 224

# (image, m, direction: 1 or -1) -> image
_Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Pixel (x, y) of the result is pixel (a x + b y + c, d x + e y + f) of the image."""
    method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.transform(image.size, method, coefficients, resample, fillcolor=_GREY)


def _enhance(kind: type) -> _Operation:
    return lambda image, m, direction: kind(image).enhance(1.8 * m + 0.1)


_OPERATIONS: dict[str, _Operation] = {
    "autocontrast": lambda image, m, direction: ImageOps.autocontrast(image),
    "equalize": lambda image, m, direction: ImageOps.equalize(image),
    "invert": lambda image, m, direction: ImageOps.invert(image),
    "rotate": lambda image, m, direction: image.rotate(
        direction * 30 * m, Image.Resampling.BILINEAR, fillcolor=_GREY
    ),
    "posterize": lambda image, m, direction: ImageOps.posterize(image, min(8, max(1, int(4 * m)))),
    "solarize": lambda image, m, direction: ImageOps.solarize(image, int(256 * m)),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, m, direction: _affine(image, 1, direction * 0.3 * m, 0, 0, 1, 0),
    "shear_y": lambda image, m, direction: _affine(image, 1, 0, 0, direction * 0.3 * m, 1, 0),
    "translate_x": lambda image, m, direction: _affine(
        image, 1, 0, direction * _TRANSLATION * m * image.width, 0, 1, 0
    ),
    "translate_y": lambda image, m, direction: _affine(
        image, 1, 0, 0, 0, 1, direction * _TRANSLATION * m * image.height
    ),
}


class RandAugment:
    """(image, position) -> image, uint8 (3, H, W): `ops` operations in turn, each drawn from all of them.

    Raises UsageError for a number of operations below 0 or a magnitude outside 0 to 30.
    """

    def __init__(self, seed: int, ops: int, magnitude: int) -> None:
        if ops < 0:
            raise UsageError(f"data.augment.randaugment_ops={ops} must be 0 or more.")
        if not 0 <= magnitude <= _MAX_MAGNITUDE:
            raise UsageError(f"data.augment.randaugment_magnitude={magnitude} must be 0 to {_MAX_MAGNITUDE}.")
        self.seed, self.ops, self.magnitude = seed, ops, magnitude

    def __call__(self, image: NDArray[np.uint8], position: int) -> NDArray[np.uint8]:
        draws = uniform(self.seed, Stream.RANDAUGMENT, position, np.arange(2 * self.ops)).tolist()
        names = list(_OPERATIONS)
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        for choice, side in zip(draws[::2], draws[1::2], strict=True):
            operation = _OPERATIONS[names[int(choice * len(names))]]
            picture = operation(picture, self.magnitude / 10, 1 if side < 0.5 else -1)
        return np.array(picture).transpose(2, 0, 1)
