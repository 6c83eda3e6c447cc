"""Cutting an image of any shape into square tiles: canvas, resize with padding, crop.

The rules are those of torchtune.models.clip.CLIPImageTransform, so that torchtune's models get the tiles
that they were trained on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

Resample = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


@lru_cache
def possible_canvases(max_tiles: int, tile_size: int) -> tuple[tuple[int, int], ...]:
    """All canvases (height, width), in pixels, of at most `max_tiles` tiles.

    In torchtune's order: from the most tiles to the fewest, and canvases of one ratio together, where the
    first of them stands.
    """
    groups: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                columns = count // rows
                canvas = (rows * tile_size, columns * tile_size)
                groups.setdefault(rows / columns, []).append(canvas)
    return tuple(canvas for group in groups.values() for canvas in group)


@lru_cache(maxsize=1 << 14)
def choose_canvas(
    height: int,
    width: int,
    tile_size: int,
    max_tiles: int,
    resize_to_max_canvas: bool = False,
) -> tuple[int, int]:
    """The (rows, columns) of tiles that suit an image of height x width best; see best_canvas()."""
    canvases = possible_canvases(max_tiles, tile_size)
    rows, columns = best_canvas(height, width, canvases, resize_to_max_canvas)
    return rows // tile_size, columns // tile_size


def best_canvas(
    height: int,
    width: int,
    canvases: tuple[tuple[int, int], ...],
    resize_to_max_canvas: bool = False,
) -> tuple[int, int]:
    """The (height, width) among `canvases` that suits an image best (torchtune: get_canvas_best_fit).

    Among the canvases on which the image need not shrink, that of the least enlargement (of the most with
    resize_to_max_canvas); if there are none, that of the least shrinking. Among equals the smallest area.
    """
    sizes = np.array(canvases)
    # float32 as in torchtune, because the rounding decides which canvases count as equal.
    scales = (sizes / np.array([height, width])).astype(np.float32).min(axis=1)
    if (enlarging := scales[scales >= 1]).size:
        scale = enlarging.max() if resize_to_max_canvas else enlarging.min()
    else:
        scale = scales.max()
    best = sizes[scales == scale]
    chosen = best[np.argmin(best.prod(axis=1))]
    return int(chosen[0]), int(chosen[1])


def resize(image: Tensor, height: int, width: int, resample: Resample = "bicubic") -> Tensor:
    """(C, H, W), uint8 or float, to (C, height, width); antialiased but for nearest pixels."""
    if image.shape[-2:] == (height, width):
        return image
    # Not image[None]: these strides tell torch that the colours of a pixel lie together in memory, and then
    # they do so in the result too, which is faster by a quarter.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if resample in ("nearest", "nearest-exact"):
        return interpolate(batch, size=(height, width), mode=resample)[0]
    size = (height, width)
    return interpolate(batch, size=size, mode=resample, align_corners=False, antialias=True)[0]


def fitted_size(
    height: int, width: int, canvas: tuple[int, int], max_size: int | None = None
) -> tuple[int, int]:
    """The (height, width) to which an image is resized for `canvas`; its ratio is kept.

    With max_size no side is enlarged beyond max(side, max_size). A side has at least one pixel (torchtune
    raises an error for none).
    """
    high, wide = canvas
    if max_size is not None:
        high, wide = min(max(height, max_size), high), min(max(width, max_size), wide)
    if wide / width < high / height:
        return max(1, min(int(height * (wide / width)), high)), wide
    return high, max(1, min(int(width * (high / height)), wide))


def resize_with_pad(
    image: Tensor,
    canvas: tuple[int, int],
    max_size: int | None = None,
    resample: Resample = "bicubic",
) -> Tensor:
    """(C, H, W) to (C, *canvas): resized to fitted_size(), with zeros at the right and at the bottom."""
    height, width = fitted_size(image.shape[-2], image.shape[-1], canvas, max_size)
    padded = image.new_zeros((image.shape[0], *canvas))
    padded[:, :height, :width] = resize(image, height, width, resample)
    return padded


def cut_tiles(image: NDArray[np.uint8], rows: int, columns: int, tile_size: int) -> NDArray[np.uint8]:
    """(C, H, W) to (n, C, S, S), as tile_crop(), after padding with zeros at the right and at the bottom.

    In memory the result is (n, S, S, C), as a decoded image is. Done in numpy, which copies in the calling
    thread; torch would start a team of threads in each decoding thread.
    """
    channels, height, width = image.shape
    if (height, width) == (tile_size, tile_size) and rows == columns == 1:
        return image[None]
    tiles = np.zeros((rows, columns, tile_size, tile_size, channels), np.uint8).transpose(0, 1, 4, 2, 3)
    for row in range(rows):
        for column in range(columns):
            top, left = row * tile_size, column * tile_size
            part = image[:, top : top + tile_size, left : left + tile_size]
            tiles[row, column, :, : part.shape[1], : part.shape[2]] = part
    return tiles.reshape(-1, channels, tile_size, tile_size)


def tile_crop(image: ArrayOrTensor, tile_size: int) -> ArrayOrTensor:
    """(C, H, W) to (n, C, tile_size, tile_size), row by row.

    ValueError unless the image has three dimensions and its sides are multiples of tile_size.
    """
    if image.ndim != 3:
        raise ValueError(f"Expected an image of shape (C, H, W), got {tuple(image.shape)}")
    channels, height, width = image.shape
    if height % tile_size or width % tile_size:
        raise ValueError(f"Image size {height}x{width} is not divisible by tile size {tile_size}")
    rows, columns = height // tile_size, width // tile_size
    tiles = image.reshape(channels, rows, tile_size, columns, tile_size)
    tiles = tiles.swapaxes(0, 1).swapaxes(1, 3).swapaxes(2, 3)  # (rows, columns, C, S, S)
    return tiles.reshape(rows * columns, channels, tile_size, tile_size)
