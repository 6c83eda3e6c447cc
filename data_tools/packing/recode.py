"""Making images smaller before they are packed, so that training has less to read and to decode."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from data_tools.images.decode import DecodeError, decode

_QUALITY = 90  # of images that are written anew for another reason, if no quality is given


@dataclass(frozen=True)
class Recode:
    """Which images are written anew, upright, in RGB or grey; all others keep their bytes.

    max_side: images with a longer side, in pixels, are shrunk to it (PNG stays PNG, JPEG and WebP become
    baseline JPEG 4:2:0). quality: all JPEG and WebP images are written with this quality, if that makes
    them smaller. baseline: progressive JPEGs, which take twice as long to decode, are written as
    baseline JPEGs; Pillow cannot do so without loss.
    """

    max_side: int | None = None
    quality: int | None = None
    baseline: bool = False

    def __bool__(self) -> bool:
        return bool(self.max_side or self.quality or self.baseline)

    def __call__(self, data: bytes, max_pixels: int) -> tuple[bytes, str | None]:
        """The bytes to be packed, and the new extension, or None if the bytes are unchanged.

        DecodeError for what is not an image, is too large or is damaged.
        """
        with _opened(data) as image:
            file_format, shrink = image.format, max(image.size) > (self.max_side or max(image.size))
            progressive = self.baseline and bool(image.info.get("progressive"))
            grey = image.mode == "L"
        if not (shrink or progressive or (self.quality and file_format != "PNG")):
            return data, None
        picture = Image.fromarray(decode(data, max_pixels))
        if grey:
            picture = picture.convert("L")
        if shrink and self.max_side:
            scale = self.max_side / max(picture.size)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        written = io.BytesIO()
        if file_format == "PNG":
            picture.save(written, "PNG")
            return written.getvalue(), "png"
        picture.save(written, "JPEG", quality=self.quality or _QUALITY, subsampling="4:2:0")
        if len(data) <= written.tell() and not (shrink or progressive):
            return data, None
        return written.getvalue(), "jpg"


AS_IT_IS = Recode()


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Image.UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise DecodeError(f"{type(error).__name__}: {error}") from error
