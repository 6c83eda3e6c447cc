"""What profiles and transparency do to pixels, against formulas and not against Little CMS."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile_images import _chunk, random_bytes
from PIL import Image
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, grey_profile, rgb_profile

from data_tools.images import jpeg
from data_tools.images.colour import is_converted
from data_tools.images.decode import decode, open_image

MAX_PIXELS = 10**6
COLOURS = np.array([[(200, 40, 60), (60, 180, 40), (50, 70, 190), (128, 128, 128)]], np.uint8)


@pytest.fixture(params=[True, False], ids=["nvimgcodec", "pillow only"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not jpeg.AVAILABLE:
        pytest.skip("nvidia-nvimgcodec-cu12 is not installed")
    monkeypatch.setattr(jpeg, "AVAILABLE", request.param)


def in_srgb(pixels: np.ndarray, primaries: tuple, gamma: float) -> np.ndarray:
    """IEC 61966-2-1 from a space of these primaries (XYZ under D50) and this gamma."""
    linear = (pixels / 255.0) ** gamma @ np.array(primaries).T @ np.linalg.inv(np.array(SRGB)).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def encoded(image: Image.Image, kind: str, profile: bytes | None, **options) -> bytes:
    buffer = io.BytesIO()
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True, "exact": True}}
    image.save(buffer, kind, icc_profile=profile, **lossless.get(kind, {}), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("space", [(ADOBE_RGB, 563 / 256), (DISPLAY_P3, 2.2)], ids=["Adobe RGB", "P3"])
def test_colours_of_another_space_become_srgb(kind: str, space: tuple, decoder) -> None:
    pixels = COLOURS.repeat(16, 0).repeat(16, 1)
    data = encoded(Image.fromarray(pixels), kind, rgb_profile(*space))
    found, wanted = decode(data, MAX_PIXELS), in_srgb(pixels, *space)
    assert np.abs(wanted - pixels).max() > 15  # else this would prove nothing
    assert np.abs(found - wanted).max() < 4
    box = open_image(data, MAX_PIXELS).region(3, 21, 9, 30)
    assert np.array_equal(box, found[3:12, 21:51])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_with_a_profile_of_grey_and_of_rgb(kind: str, decoder) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, 0)
    for profile in (grey_profile(1.8), rgb_profile(SRGB, 1.8)):
        found = decode(encoded(Image.fromarray(ramp), kind, profile), MAX_PIXELS)
        wanted = in_srgb(np.repeat(ramp[:, :, None], 3, 2), SRGB, 1.8)
        assert np.abs(found - wanted).max() <= 2 + 2 * (kind == "JPEG")


def test_16_bit_grey_a_palette_and_printing_inks_with_a_profile() -> None:
    wide = np.arange(0, 65536, 257, dtype=np.uint16)[None].repeat(4, 0)
    found = decode(encoded(Image.fromarray(wide), "PNG", grey_profile(1.8)), MAX_PIXELS)
    grey = np.arange(256)[None, :, None].repeat(4, 0).repeat(3, 2)
    assert np.abs(found - in_srgb(grey, SRGB, 1.8)).max() <= 2
    palette = Image.fromarray(COLOURS).quantize(8)
    found = decode(encoded(palette, "PNG", rgb_profile(ADOBE_RGB, 2.2)), MAX_PIXELS)
    assert np.abs(found - in_srgb(np.asarray(palette.convert("RGB")), ADOBE_RGB, 2.2)).max() <= 2
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # all cyan: grey of lightness 66.7 in that printer
    (pixel,) = np.unique(decode(encoded(inks, "JPEG", cmyk_profile()), MAX_PIXELS).reshape(-1, 3), axis=0)
    assert np.abs(pixel.astype(int) - 162).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_profiles_of_srgb_damaged_ones_and_those_of_other_images_change_nothing(kind: str, decoder) -> None:
    image = Image.fromarray(COLOURS.repeat(16, 0).repeat(16, 1))
    plain = decode(encoded(image, kind, None), MAX_PIXELS)
    good = rgb_profile(ADOBE_RGB, 2.2)
    for profile in (
        random_bytes(300),
        good[:150],
        good[:36] + b"xxxx" + good[40:],
        grey_profile(1.0),
        cmyk_profile(),
    ):
        assert np.array_equal(decode(encoded(image, kind, profile), MAX_PIXELS), plain)
    assert not is_converted(None, "RGB") and not is_converted(b"", "L")


def test_srgb_is_known_by_what_it_does_and_not_by_its_name() -> None:
    from PIL import ImageCms

    built = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not is_converted(built, "RGB") and not is_converted(built, "L")
    assert is_converted(rgb_profile(SRGB, 1.8), "RGB") and is_converted(rgb_profile(DISPLAY_P3, 2.2), "RGB")


def png(width: int, bits: int, colour: int, row: bytes, trns: bytes, profile: bytes = b"") -> bytes:
    """A PNG of one row with a tRNS chunk and, if given, a profile."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header)
    chunks += _chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)) if profile else b""
    chunks += _chunk(b"tRNS", trns) if trns else b""
    return b"\x89PNG\r\n\x1a\n" + chunks + _chunk(b"IDAT", zlib.compress(b"\0" + row)) + _chunk(b"IEND", b"")


WIDE = 0x1234, 0x5678, 0x9ABC


@pytest.mark.parametrize(
    ("bits", "colour", "row", "trns", "second"),
    [
        (1, 0, b"\x40", (0,), 255),
        (2, 0, b"\x60", (1,), 170),
        (4, 0, b"\x3c", (3,), 204),
        (8, 0, b"\x07\x09", (7,), 9),
        (16, 0, struct.pack(">HH", 0x1234, 0x8080), (0x1234,), 128),
        (8, 2, bytes((1, 2, 3, 9, 9, 9)), (1, 2, 3), 9),
        (
            16,
            2,
            struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x0909, 0x0909, 0x0909),
            (0x1234, 0x5678, 0x9ABC),
            9,
        ),
    ],
)
def test_the_transparent_colour_of_every_depth_is_laid_on_white(bits, colour, row, trns, second) -> None:
    data = png(2, bits, colour, row, struct.pack(f">{len(trns)}H", *trns))
    assert decode(data, MAX_PIXELS).tolist() == [[[255] * 3, [second] * 3]]
    without = decode(png(2, bits, colour, row, b""), MAX_PIXELS)
    assert without[0, 0].tolist() != [255] * 3 and without[0, 1].tolist() == [second] * 3


def test_16_bit_grey_with_a_colour_that_is_almost_the_transparent_one_stays() -> None:
    data = png(2, 16, 0, struct.pack(">HH", 0x1234, 0x1235), struct.pack(">H", 0x1234))
    assert decode(data, MAX_PIXELS)[0, :, 0].tolist() == [255, 18]


def test_colours_are_converted_first_and_then_laid_on_white() -> None:
    profile = grey_profile(1.0)
    as_srgb = 137  # of 64 in linear light
    for data in (
        png(1, 8, 4, bytes((64, 128)), b"", profile),
        png(1, 16, 4, struct.pack(">HH", 64 * 257, 128 * 257), b"", profile),
        encoded(Image.new("RGBA", (1, 1), (64, 64, 64, 128)), "PNG", rgb_profile(SRGB, 1.0)),
        encoded(Image.new("RGBA", (1, 1), (64, 64, 64, 128)), "WEBP", rgb_profile(SRGB, 1.0)),
    ):
        wanted = as_srgb * 128 / 255 + 255 * 127 / 255
        assert np.abs(decode(data, MAX_PIXELS).astype(int) - wanted).max() <= 2


def test_threads_convert_the_same_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    files = [encoded(Image.fromarray(pixels + n), "PNG", rgb_profile(ADOBE_RGB, 2.2)) for n in range(8)]
    wanted = [decode(data, MAX_PIXELS) for data in files]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: decode(files[n % 8], MAX_PIXELS), range(200)))
    assert all(np.array_equal(image, wanted[n % 8]) for n, image in enumerate(found))
