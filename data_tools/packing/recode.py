"""Writing images anew before they are packed: smaller, in sRGB, or in a format that training reads."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from data_tools.images.colour import is_converted
from data_tools.images.decode import DecodeError, decode, decode_other, what_it_is
from data_tools.images.formats import CONVERTED, EXTENSIONS, READ, other_format

_QUALITY = 90  # of images that are written anew for another reason, if no quality is given
_COLOUR_QUALITY = 95  # of those that only get other colours: the loss shall not be seen
_PROFILES = (b"ICC_PROFILE\0", b"iCCP", b"ICCP")  # of JPEG, PNG and WebP


@dataclass(frozen=True)
class Written:
    """What is packed for one image.

    extension: in shards; None for bytes that are unchanged and keep the extension of their name.
    converted: the format that it had, if training does not read that. recoloured: it is now in sRGB and was
    not. pictures: how many the file has; the first one is taken.
    """

    data: bytes
    extension: str | None = None
    converted: str | None = None
    recoloured: bool = False
    pictures: int = 1


@dataclass(frozen=True)
class Recode:
    """Which images are written anew, upright, in sRGB or grey; all others keep their bytes.

    max_side: images with a longer side, in pixels, are shrunk to it (PNG stays PNG, JPEG and WebP become
    baseline JPEG 4:2:0). quality: all JPEG and WebP images are written with this quality, if that makes
    them smaller. baseline: progressive JPEGs, which take twice as long to decode, are written as
    baseline JPEGs; Pillow cannot do so without loss. icc: images with a colour profile that is not sRGB are
    written in sRGB. convert: images of the formats CONVERTED become PNG, or JPEG if a quality is given.
    """

    max_side: int | None = None
    quality: int | None = None
    baseline: bool = False
    icc: bool = True
    convert: bool = False

    def __bool__(self) -> bool:
        return bool(self.max_side or self.quality or self.baseline or self.icc or self.convert)

    def __call__(self, data: bytes, max_pixels: int) -> Written:
        """What to pack for the encoded image `data`.

        DecodeError for what is not an image, is too large or is damaged.
        """
        if self.convert and other_format(data):
            return self._convert(data, max_pixels)
        recolour = self.icc and _has_other_colours(data)
        if not (recolour or self.max_side or self.quality or self.baseline):
            return Written(data)
        with _opened(data) as image:
            file_format, shrink = image.format, max(image.size) > (self.max_side or max(image.size))
            progressive = self.baseline and bool(image.info.get("progressive"))
            grey = image.mode == "L"
        if not (recolour or shrink or progressive or (self.quality and file_format != "PNG")):
            return Written(data)
        picture = Image.fromarray(decode(data, max_pixels))
        if grey:
            picture = picture.convert("L")
        if shrink:
            picture = self._shrunk(picture)
        if file_format == "PNG":
            return Written(_encoded(picture, "PNG"), "png", recoloured=recolour)
        if recolour and not (shrink or progressive or self.quality):
            written = _encoded(picture, "JPEG", quality=_COLOUR_QUALITY, subsampling="4:4:4")
        else:
            written = self._as_jpeg(picture)
        if len(data) <= len(written) and not (recolour or shrink or progressive):
            return Written(data)
        return Written(written, "jpg", recoloured=recolour)

    def _convert(self, data: bytes, max_pixels: int) -> Written:
        picture = Image.fromarray(decode_other(data, max_pixels, CONVERTED))
        with _opened(data, CONVERTED) as image:
            recoloured = _has_other_profile(image)
            try:
                pictures = getattr(image, "n_frames", 1)
            except Exception:  # the first picture is good although what follows is damaged
                pictures = 1
        if self.max_side:
            picture = self._shrunk(picture)
        written, extension = (
            (self._as_jpeg(picture), "jpg") if self.quality else (_encoded(picture, "PNG"), "png")
        )
        return Written(written, extension, other_format(data), recoloured, pictures)

    def _shrunk(self, picture: Image.Image) -> Image.Image:
        scale = min(1.0, (self.max_side or 0) / max(picture.size))
        width, height = (max(1, round(side * scale)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC)

    def _as_jpeg(self, picture: Image.Image) -> bytes:
        return _encoded(picture, "JPEG", quality=self.quality or _QUALITY, subsampling="4:2:0")


USUAL = Recode()  # only other colours


def file_extension(data: bytes) -> str:
    """What shards call the format of an image that training reads. DecodeError for other data."""
    with _opened(data) as image:
        return EXTENSIONS[image.format or ""]


def _has_other_colours(data: bytes) -> bool:
    """Whether an image of the formats READ has a profile that decode() converts from."""
    if not any(mark in data for mark in _PROFILES):
        return False
    try:
        with _opened(data) as image:
            return _has_other_profile(image)
    except DecodeError:
        return False


def _has_other_profile(image: Image.Image) -> bool:
    modes = {"P": "RGB", "RGBA": "RGB", "LA": "L", "1": "L", "I;16": "L"}
    return is_converted(image.info.get("icc_profile"), modes.get(image.mode, image.mode))


def _encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    written = io.BytesIO()
    picture.save(written, file_format, **options)
    return written.getvalue()


def _opened(data: bytes, formats: tuple[str, ...] = READ) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError:
        raise DecodeError(what_it_is(data)) from None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}") from error
