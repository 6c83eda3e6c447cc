"""torchtune's way from an image to tiles, and transformers' image processors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .maps import antialiased, nearest

KERNELS = {
    "nearest": nearest,
    "bilinear": lambda old, new: antialiased(old, new, None),
    "bicubic": lambda old, new: antialiased(old, new, -0.5),
}
Size = tuple[int, int]


def tile_crop(image: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (tiles, C, side, side), row by row."""
    height, width = image.shape[1:]
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
    )


def resized(image: Sequence[int], canvas: Size, max_size: int | None) -> Size:
    """The height and width that an image of this size takes on a canvas, its ratio kept.

    max_size: no side grows beyond it, unless it was longer before.
    """
    sides = [
        side if max_size is None else min(max(own, max_size), side)
        for own, side in zip(image, canvas, strict=True)
    ]
    scales = [side / own for own, side in zip(image, sides, strict=True)]
    if scales[1] < scales[0]:
        return min(math.floor(image[0] * scales[1]), sides[0]), sides[1]
    return sides[0], min(math.floor(image[1] * scales[0]), sides[1])


def resize_with_pad(image: Tensor, canvas: Size, max_size: int | None, resample: str) -> Tensor:
    """(C, H, W) -> (C, *canvas): resized, then zeros at the right and at the bottom."""
    height, width = resized(image.shape[1:], canvas, max_size)
    down, across = KERNELS[resample](image.shape[1], height), KERNELS[resample](image.shape[2], width)
    result = torch.zeros(len(image), *canvas, dtype=torch.float64)
    result[:, :height, :width] = torch.einsum("ih,jw,chw->cij", down, across, image.double())
    return result


def supported(max_tiles: int, side: int) -> list[Size]:
    """The canvases of at most max_tiles tiles: more tiles first, those of one ratio together."""
    every = [(rows, n // rows) for n in range(max_tiles, 0, -1) for rows in range(1, n + 1) if n % rows == 0]
    ratios = [rows / columns for rows, columns in every]
    return [
        (rows * side, columns * side)
        for ratio in dict.fromkeys(ratios)
        for rows, columns in every
        if rows / columns == ratio
    ]


def best_canvas(image: Sequence[int], canvases: Sequence[Sequence[int]], to_max: bool) -> Size:
    """The canvas with the least enlargement, or with to_max the most; if all shrink, the least shrinking.

    The smallest area among equals, equal in float32.
    """
    best: tuple[tuple[bool, float, int], Size] | None = None
    for height, width in canvases:
        scale = float(min(np.float32(height / image[0]), np.float32(width / image[1])))
        grows = scale >= 1
        rank = (not grows, scale if grows and not to_max else -scale, height * width)
        if best is None or rank < best[0]:
            best = rank, (height, width)
    assert best is not None
    return best[1]


def processed(image: NDArray[np.uint8], sizes: dict[str, Any]) -> NDArray[np.float64]:
    """(H, W, 3) -> (1, 3, h, w): resized by Pillow, whole or to the middle part; normalised."""
    picture = Image.fromarray(image)
    resample = Image.Resampling[sizes["resample"].split()[0].upper()]
    if "shortest_edge" in sizes["size"]:
        short, (width, height) = sizes["size"]["shortest_edge"], picture.size
        # The longer side is cut to a whole number, as the shorter one is exact.
        scaled = (
            (int(short * width / height), short) if height < width else (short, int(short * height / width))
        )
        picture = picture.resize(scaled, resample)
        side = sizes["crop_size"]["height"]
        left, top = ((length - side) // 2 for length in picture.size)
        picture = picture.crop((left, top, left + side, top + side))
    else:
        picture = picture.resize((sizes["size"]["width"], sizes["size"]["height"]), resample)
    pixels = np.asarray(picture, dtype=np.float64).transpose(2, 0, 1)[None]
    return (pixels / 255 - sizes["mean"]) / sizes["std"]
