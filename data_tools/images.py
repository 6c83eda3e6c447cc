"""One encoded image to one RGB array, safely."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pillow opens JPEG pictures with a second one inside (MPO, from phones) as part of JPEG.
FORMATS = ("JPEG", "PNG", "WEBP")
_BACKGROUND = (255, 255, 255)
# The header is checked against max_pixels below, before anything is allocated; Pillow's own limit
# would cap what the user asks for.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# A JPEG block of 8x8 pixels takes at least one bit, so more pixels a byte mean a lying header that
# decodes to grey without an error.
_JPEG_PIXELS_PER_BYTE = 512


class DecodeError(Exception):
    """The bytes are not an image that can be used; the text is a short reason."""


def decode(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The image in `data` as uint8 (H, W, 3), RGB, upright by its EXIF orientation.

    The content decides the format (JPEG, PNG, WebP), not a name. Of an animation the first picture;
    transparency on white; 16-bit grey scaled by 1/257; colour profiles ignored. Thread-safe.
    Raises DecodeError for anything else, for more than max_pixels and for a truncated file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, len(data), max_pixels)
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # hostile bytes make a decoder raise almost anything
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _check_size(image: Image.Image, size: int, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise DecodeError(f"{image.width}x{image.height} is more than max_pixels={max_pixels}")
    if image.format in ("JPEG", "MPO") and pixels > size * _JPEG_PIXELS_PER_BYTE:
        raise DecodeError(f"{size} bytes cannot hold the {image.width}x{image.height} it claims")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    if image.mode not in ("RGB", "RGBA", "L", "P", "1", "CMYK"):
        raise DecodeError(f"pixels of mode {image.mode} are not supported")
    return np.array(image.convert("RGB"))  # a copy: torch takes no read-only memory


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block says nothing about the picture
        return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo EXIF orientations 2 to 8 (Exif 2.32, tag 0x0112); any other value means upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
