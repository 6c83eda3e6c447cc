"""Images as people hand them over, as arrays: Pillow's, numpy's, torch's, and lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
FIRST, LAST = "channels_first", "channels_last"


def each(images: Any) -> list[Any]:
    """One image, a batch (N, ., ., .) or a list of images as a list; ValueError for what is none of them."""
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | torch.Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return [image for part in images for image in each(part)]
    raise ValueError(
        f"images must be Pillow images, arrays, tensors, or lists of them, not {type(images).__name__}"
    )


def as_array(image: Any, rgb: bool) -> Array:
    """An image as an array of its own layout and type. rgb: convert one of Pillow to red, green and blue."""
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB") if rgb else image)
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)


def layout_of(image: Array, given: str | None) -> str:
    """channels_first or channels_last of an image (3 dimensions); given: what the caller says, or None.

    One or three channels are looked for at the front, then at the end. ValueError where there are none.
    """
    if image.ndim != 3:
        raise ValueError(f"an image has 3 dimensions, height, width and channels, got {image.shape}")
    if given is not None:
        return layout(given, "input_data_format")
    if image.shape[0] in (1, 3):
        return FIRST
    if image.shape[-1] in (1, 3):
        return LAST
    raise ValueError(
        f"where the channels of an image of shape {image.shape} are cannot be told: give "
        "input_data_format='channels_first' or 'channels_last'"
    )


def layout(given: str, argument: str) -> str:
    """channels_first or channels_last, also of an Enum with these values; ValueError for all else."""
    value = getattr(given, "value", given)
    if value not in (FIRST, LAST):
        raise ValueError(f"{argument} must be {FIRST!r} or {LAST!r}, got {value!r}")
    return value


def to_layout(image: Array, source: str, target: str) -> Array:
    """An image of one layout in another."""
    if source == target:
        return image
    return image.transpose(2, 0, 1) if target == FIRST else image.transpose(1, 2, 0)


def as_tensors(values: list[Array], kind: Any) -> Any:
    """Arrays as they are (None), as one array ("np") or one tensor ("pt"); ValueError for another kind."""
    kind = getattr(kind, "value", kind)
    if kind is None:
        return values
    if kind not in ("np", "pt"):
        raise ValueError(f"return_tensors must be None, 'np' or 'pt', got {kind!r}")
    if len({value.shape for value in values}) > 1:
        shapes = ", ".join(str(value.shape) for value in values[:3])
        raise ValueError(f"images of different sizes ({shapes}) are no batch: leave out return_tensors")
    whole = np.stack(values)
    return torch.from_numpy(whole) if kind == "pt" else whole


class Features(dict[str, Any]):
    """A dictionary whose values are attributes too, such as `pixel_values`."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]
