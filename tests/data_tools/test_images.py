from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sample_files import picture

from data_tools.images import DecodeError, decode

MAX_PIXELS = 67_108_864


def test_every_hostile_image_is_rejected_or_decoded_as_it_should_be(hostile: Path) -> None:
    readme = (hostile / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## images/") : readme.index("## shards/")]
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", table, re.MULTILINE)
    assert len(rows) > 80
    wrong = []
    for name, want in rows:
        try:
            image = decode((hostile / "images" / name).read_bytes(), MAX_PIXELS)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            found = "accept"
        except DecodeError as error:
            assert str(error)
            found = "reject"
        if want != "policy" and found != want.replace("convert", "accept"):
            wrong.append((name, want))
    assert not wrong


def test_orientation_is_applied_once(hostile: Path) -> None:
    images = hostile / "images"
    upright = decode((images / "exif_orientation_reference.png").read_bytes(), MAX_PIXELS)
    names = [f"exif_orientation_{n}.jpg" for n in range(10)] + ["exif_orientation_6.png"]
    for name in names:
        image = decode((images / name).read_bytes(), MAX_PIXELS)
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright).mean() < 6, name


def test_modes_are_converted_with_the_right_colours(hostile: Path) -> None:
    def corners(name: str) -> list[list[int]]:
        image = decode((hostile / "images" / name).read_bytes(), MAX_PIXELS).astype(int)
        return [image[y, x].tolist() for y, x in ((8, 8), (8, -8), (-8, 8), (-8, -8))]

    control = np.array(corners("00_control.png"))
    for name in (
        "cmyk.jpg",
        "rgb16.png",
        "rgb_colourspace.jpg",
        "chroma_444.jpg",
        "webp_named.JPEG",
    ):
        assert np.abs(np.array(corners(name)) - control).max() < 30, name
    grey = decode((hostile / "images/gray.jpg").read_bytes(), MAX_PIXELS).astype(int)
    wide = decode((hostile / "images/gray16.png").read_bytes(), MAX_PIXELS)
    assert np.abs(grey - wide).mean() < 3
    transparent = decode((hostile / "images/rgba.png").read_bytes(), MAX_PIXELS)
    assert (transparent[:, -4:] == 255).all()  # on white


def test_the_pixel_limit_is_the_callers() -> None:
    data = picture(1, 20, 30)
    assert decode(data, 600).shape == (20, 30, 3)
    with pytest.raises(DecodeError, match="30x20 is more than max_pixels=599"):
        decode(data, 599)
