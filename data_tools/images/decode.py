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
from data_tools.images.colour import to_srgb
from data_tools.images.formats import READ, other_format

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB

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
        self._grey, self._profile = header.grey, header.icc
        self._orientation = _jpeg_orientation(header)
        turned = self._orientation in (5, 6, 7, 8)
        self.height, self.width = (header.width, header.height) if turned else (header.height, header.width)

    def region(self, top: int, left: int, height: int, width: int) -> Pixels:
        stored = self._as_stored(top, left, height, width)
        pixels = jpeg.decode_region(self._data, *stored)
        if pixels is None:  # then Pillow decides, as it does where nvimgcodec is missing
            return Decoded(_pillow(self._data, self._max_pixels)).region(top, left, height, width)
        if self._profile:
            stored_as = Image.fromarray(pixels[:, :, 0] if self._grey else pixels)
            pixels = np.array(to_srgb(stored_as, self._profile).convert("RGB"))
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
    picture. 16-bit grey is divided by 257. Colours are converted to sRGB where an ICC profile says that they
    are others. Transparency of every kind is then laid on white, in sRGB. Thread-safe.
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


def decode_other(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Pixels:
    """As decode(), for an image of one of Pillow's `formats`."""
    return _pillow(data, max_pixels, formats)


def _pillow(data: bytes, max_pixels: int, formats: tuple[str, ...] = READ) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            is_jpeg = image.format in ("JPEG", "MPO")
            _check_size(image.height, image.width, len(data), max_pixels, is_jpeg)
            image.load()
            orientation = _orientation(image)
            whole = _mend_png(image, data) if image.format == "PNG" else image
            return _upright(_rgb(whole), orientation)
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(what_it_is(data)) from None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def what_it_is(data: bytes) -> str:
    """Why bytes that no decoder takes are no image to train on."""
    other = other_format(data)
    return f"{other}, and not JPEG, PNG or WebP" if other else "not a JPEG, PNG or WebP image"


def _check_size(height: int, width: int, size: int, max_pixels: int, is_jpeg: bool) -> None:
    pixels = width * height
    if pixels > max_pixels:
        raise DecodeError(f"{width}x{height} is more than max_pixels={max_pixels}")
    if is_jpeg and pixels > size * _JPEG_PIXELS_PER_BYTE:
        raise DecodeError(f"{size} bytes cannot hold the {width}x{height} it claims")


def _rgb(image: Image.Image) -> Pixels:
    colours, alpha = _parts(image)
    if colours.mode not in ("RGB", "L", "CMYK"):
        raise DecodeError(f"pixels of mode {colours.mode} are not supported")
    colours = to_srgb(colours, image.info.get("icc_profile")).convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
        background = Image.new("RGBA", colours.size, (*_BACKGROUND, 255))
        colours = Image.alpha_composite(background, colours).convert("RGB")
    return np.array(colours)  # a copy, because torch takes no read-only memory


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image in 8 bits, and how opaque it is; None where it is so everywhere."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        return grey, None if transparent is None else Image.fromarray(wide != transparent).convert("L")
    if image.mode in ("LA", "La"):
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if image.mode in ("RGBA", "RGBa", "PA") or transparent is not None:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    return image.convert({"P": "RGB", "1": "L"}.get(image.mode, image.mode)), None


def _mend_png(image: Image.Image, data: bytes) -> Image.Image:
    """A PNG as its header says it: Pillow widens or narrows the pixels, but not the transparent colour.

    PNG, third edition, 11.3.1.1: grey with alpha of 16 bits becomes RGBA, of which one channel is the grey.
    """
    bits, colour_type = data[24], data[25]
    transparent = image.info.get("transparency")
    if bits in (2, 4) and isinstance(transparent, int) and image.mode == "L":
        image.info["transparency"] = transparent % (1 << bits) * 255 // ((1 << bits) - 1)
    if bits == 16 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if bits == 16 and colour_type == 4:
        profile = image.info.get("icc_profile")
        image = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
        image.info["icc_profile"] = profile
    return image


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
