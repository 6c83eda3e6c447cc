"""One encoded image to RGB pixels, safely: its size is checked first, then only what is needed is decoded."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.images import jpeg

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB

# "JPEG" includes MPO, a JPEG of a phone with a second picture inside.
FORMATS = ("JPEG", "PNG", "WEBP")
_BACKGROUND = (255, 255, 255)
# _check_size() compares the header with max_pixels before anything is allocated. Pillow's own limit could
# be lower than what the user allows.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# A JPEG block of 8x8 pixels takes at least one bit. More pixels than that mean a false header, whose image
# libjpeg would fill with grey without an error.
_JPEG_PIXELS_PER_BYTE = 512
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class DecodeError(Exception):
    """The bytes are not an image that can be used. The text of the error is a short reason."""


class Picture(Protocol):
    """An upright image of height x width pixels, of which single regions can be decoded. Thread-safe."""

    @property
    def height(self) -> int:
        """Rows of pixels."""

    @property
    def width(self) -> int:
        """Columns of pixels."""

    def region(self, top: int, left: int, height: int, width: int) -> Pixels:
        """The pixels (height, width, 3) of a box inside the picture. DecodeError for damaged data."""


@dataclass(frozen=True)
class Decoded:
    """A Picture that is decoded already."""

    pixels: Pixels

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.pixels.shape[1]

    def region(self, top: int, left: int, height: int, width: int) -> Pixels:
        """The pixels of a box, without a copy."""
        return self.pixels[top : top + height, left : left + width]


class _Jpeg:
    """A plain JPEG; region() decodes no more than that region needs."""

    def __init__(self, data: bytes, header: jpeg.Header, max_pixels: int) -> None:
        self._data, self._max_pixels = data, max_pixels
        self._orientation = _jpeg_orientation(header)
        turned = self._orientation in (5, 6, 7, 8)
        self.height, self.width = (header.width, header.height) if turned else (header.height, header.width)

    def region(self, top: int, left: int, height: int, width: int) -> Pixels:
        stored = self._as_stored(top, left, height, width)
        pixels = jpeg.decode_region(self._data, *stored)
        if pixels is None:  # then Pillow decides, as it does where nvimgcodec is missing
            return Decoded(_pillow(self._data, self._max_pixels)).region(top, left, height, width)
        return _upright(pixels, self._orientation)

    def _as_stored(self, top: int, left: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The box before _upright turns and mirrors it."""
        if self._orientation in (3, 4, 7, 8):
            top = self.height - top - height
        if self._orientation in (2, 3, 6, 7):
            left = self.width - left - width
        if self._orientation in (5, 6, 7, 8):
            return left, top, width, height
        return top, left, height, width


def open_image(data: bytes, max_pixels: int) -> Picture:
    """The image in `data`, turned upright by its EXIF orientation. A plain JPEG is decoded only in region().

    The content decides the format (JPEG, PNG, WebP), not a file name. An animation gives its first
    picture; transparent pixels are laid on white; 16-bit grey is divided by 257; colour profiles are
    ignored. Thread-safe.
    DecodeError for anything else, for more than max_pixels and for a truncated file. A JPEG is truncated
    if no end marker follows its scan. Damage inside a scan gives wrong pixels without an error, as in
    libjpeg; below the decoded region it is not noticed at all.
    """
    header = jpeg.read_header(data) if jpeg.AVAILABLE else None
    if header is None:
        return Decoded(_pillow(data, max_pixels))
    _check_size(header.height, header.width, len(data), max_pixels, is_jpeg=True)
    return _Jpeg(data, header, max_pixels)


def decode(data: bytes, max_pixels: int) -> Pixels:
    """The pixels (H, W, 3) of the whole image in `data`; rules and errors are those of open_image()."""
    picture = open_image(data, max_pixels)
    return picture.region(0, 0, picture.height, picture.width)


def _pillow(data: bytes, max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            is_jpeg = image.format in ("JPEG", "MPO")
            _check_size(image.height, image.width, len(data), max_pixels, is_jpeg)
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _check_size(height: int, width: int, size: int, max_pixels: int, is_jpeg: bool) -> None:
    pixels = width * height
    if pixels > max_pixels:
        raise DecodeError(f"{width}x{height} is more than max_pixels={max_pixels}")
    if is_jpeg and pixels > size * _JPEG_PIXELS_PER_BYTE:
        raise DecodeError(f"{size} bytes cannot hold the {width}x{height} it claims")


def _rgb(image: Image.Image) -> Pixels:
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
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(rgb)  # a copy, because torch takes no read-only memory


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the picture may be good although its EXIF block is damaged
        return 1


def _jpeg_orientation(header: jpeg.Header) -> int:
    """As _orientation(), from the EXIF block of a header, or else from its XMP block."""
    orientation = None
    if header.exif:
        exif = Image.Exif()
        try:
            exif.load(header.exif)
            orientation = exif.get(_ORIENTATION)
        except Exception:  # as in _orientation
            return 1
    if orientation is None and (found := _XMP_ORIENTATION.search(header.xmp)):
        orientation = int(found[1])
    return 1 if orientation is None else orientation


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientations 2 to 8 (Exif 2.32, tag 0x0112); any other value means upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
