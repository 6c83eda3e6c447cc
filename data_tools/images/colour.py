"""Colour profiles: pixels of another colour space to sRGB (IEC 61966-2-1), by Little CMS.

Format of profiles: ICC.1:2022. Intent: perceptual, which for profiles of a matrix and curves (Display P3,
Adobe RGB) is the same as the others.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# Of 255. sRGB profiles of several makers differ by 1 or 2; gamma 2.2 in place of sRGB's curve by 7.
_TOLERANCE = 2
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_GRID = np.linspace(0, 255, 6).round().astype(np.uint8)
_PROBES = {
    "L": Image.fromarray(np.arange(256, dtype=np.uint8)[None]),
    "RGB": Image.fromarray(np.stack(np.meshgrid(_GRID, _GRID, _GRID), axis=-1).reshape(1, -1, 3)),
}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image (mode L, RGB or CMYK) in sRGB (mode RGB) if its profile says that its colours are others.

    It is returned as it is without a profile, with one of sRGB, and with one that is damaged or belongs to
    another kind of image. A profile of RGB is taken for a grey image too.
    """
    if not profile:
        return image
    if image.mode == "L" and (convert := _conversion(profile, "RGB")):
        return convert(image.convert("RGB"))
    convert = _conversion(profile, image.mode)
    return convert(image) if convert else image


def is_converted(profile: bytes | None, mode: str) -> bool:
    """Whether to_srgb() changes images of this mode and profile; False for modes other than L, RGB, CMYK."""
    modes = ("RGB", "L") if mode == "L" else (mode,)
    return bool(profile) and any(_conversion(profile or b"", mode) for mode in modes)


@lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """What takes pixels of `mode` to sRGB; None if the profile changes nothing or cannot be used."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != _SPACES.get(mode):
            return None
        transform = ImageCms.buildTransform(opened, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # as without a profile: the pixels may be good although the profile is damaged
    if probe := _PROBES.get(mode):
        before = np.asarray(probe.convert("RGB"), np.int16)
        if np.abs(np.asarray(transform.apply(probe), np.int16) - before).max() <= _TOLERANCE:
            return None
    return transform.apply
