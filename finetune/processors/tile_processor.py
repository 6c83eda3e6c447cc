"""torchtune's CLIPImageTransform: images of any size become tiles, which keep their ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from data_tools.images.tiles import Resample, best_canvas, possible_canvases, resize_with_pad, tile_crop

from .images import FIRST, Features, as_array, each, layout_of, to_layout

RESAMPLES = ("nearest", "nearest_exact", "bilinear", "bicubic")


class TileProcessor:
    """Resizes an image to the canvas that suits it best, fills up with zeros, normalises and cuts tiles.

    image_mean, image_std: for each channel, both or None for none. possible_resolutions: the canvases
    (height, width) in pixels; None: all of at most max_num_tiles tiles. dtype: of the tiles, and of all
    computing. resample: nearest, nearest_exact, bilinear or bicubic. resize_to_max_canvas: enlarge an image
    as far as a canvas allows; otherwise no side beyond tile_size. ValueError for a value that cannot be.
    """

    def __init__(
        self,
        *,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        possible_resolutions: Sequence[tuple[int, int]] | None = None,
        tile_size: int = 224,
        max_num_tiles: int | None = 4,
        dtype: torch.dtype = torch.bfloat16,
        resample: str = "bilinear",
        resize_to_max_canvas: bool = False,
    ) -> None:
        if (image_mean is None) != (image_std is None):
            raise ValueError(
                f"give both or none of image_mean and image_std, got {image_mean} and {image_std}"
            )
        if not possible_resolutions and not max_num_tiles:
            raise ValueError("give possible_resolutions or max_num_tiles")
        if resample not in RESAMPLES:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLES)}, got {resample!r}")
        canvases = tuple((int(h), int(w)) for h, w in possible_resolutions or ())
        if wrong := next(
            (canvas for canvas in canvases if any(n < 1 or n % tile_size for n in canvas)), None
        ):
            raise ValueError(
                f"possible_resolutions has {wrong}, which is no multiple of tile_size {tile_size}"
            )
        self.image_mean, self.image_std = image_mean, image_std
        self.possible_resolutions = canvases or possible_canvases(max_num_tiles or 1, tile_size)
        self.tile_size, self.max_num_tiles = tile_size, max_num_tiles
        self.dtype, self.resample, self.resize_to_max_canvas = dtype, resample, resize_to_max_canvas

    def __call__(self, images: Any, *, input_data_format: Any = None) -> Features:
        """pixel_values, for each image its tiles (n, C, S, S), and aspect_ratio (B, 2), rows and columns.

        images, input_data_format: as in `ImageProcessor`; numbers of 0 to 255, or floating-point of 0 to 1.
        """
        found = [self._process(image, input_data_format) for image in each(images)]
        ratios = torch.tensor([ratio for _, ratio in found])
        return Features(pixel_values=[tiles for tiles, _ in found], aspect_ratio=ratios)

    def _process(self, image: Any, source: Any) -> tuple[Tensor, tuple[int, int]]:
        array = as_array(image, rgb=True)
        pixels = torch.from_numpy(to_layout(array, layout_of(array, source), FIRST).copy())
        pixels = pixels.to(self.dtype) if pixels.is_floating_point() else pixels.to(self.dtype) / 255
        height, width = best_canvas(
            pixels.shape[1], pixels.shape[2], self.possible_resolutions, self.resize_to_max_canvas
        )
        largest = None if self.resize_to_max_canvas else self.tile_size
        resample = cast(Resample, self.resample.replace("_", "-"))
        padded = resize_with_pad(pixels, (height, width), largest, resample)
        if self.image_mean is not None and self.image_std is not None:
            mean, std = (
                torch.tensor(numbers, dtype=self.dtype)[:, None, None]
                for numbers in (self.image_mean, self.image_std)
            )
            padded = (padded - mean) / std
        tiles = tile_crop(padded, self.tile_size)
        return tiles, (height // self.tile_size, width // self.tile_size)
