from __future__ import annotations

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hostile_images import images
from PIL import Image, ImageOps
from sample_files import picture

from data_tools.images import jpeg
from data_tools.images.decode import DecodeError, decode, open_image

ROOT = Path(__file__).parents[3]
MAX_PIXELS = 67_108_864


def test_every_hostile_image_is_rejected_or_decoded_as_it_should_be(hostile: Path) -> None:
    assert len(images()) > 80
    wrong = []
    for name, (want, _) in images().items():
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


def outcome(data: bytes) -> tuple[int, ...] | str:
    """The size of an image, or the kind of reason why there is none."""
    try:
        return decode(data, MAX_PIXELS).shape
    except DecodeError as error:
        return re.sub(r"\d+", "N", str(error).partition(":")[0])


def test_the_made_images_end_as_those_of_the_reference_data(hostile: Path, hostile_reference: Path) -> None:
    def outcomes(folder: Path) -> dict[str, tuple[int, ...] | str]:
        files = [path for path in (folder / "images").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): outcome(path.read_bytes()) for path in files}

    assert outcomes(hostile) == outcomes(hostile_reference)


def test_orientation_is_applied_once(hostile: Path) -> None:
    folder = hostile / "images"
    upright = decode((folder / "exif_orientation_reference.png").read_bytes(), MAX_PIXELS)
    names = [f"exif_orientation_{n}.jpg" for n in range(10)] + ["exif_orientation_6.png"]
    for name in names:
        image = decode((folder / name).read_bytes(), MAX_PIXELS)
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


@pytest.fixture(params=[True, False], ids=["nvimgcodec", "pillow only"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once with the decoder of regions, once as on a machine that has none."""
    if request.param and not jpeg.AVAILABLE:
        pytest.skip("nvidia-nvimgcodec-cu12 is not installed")
    monkeypatch.setattr(jpeg, "AVAILABLE", request.param)
    return request.param


def whole(data: bytes) -> np.ndarray:
    """Pillow's pixels, upright."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image.convert("RGB")))


def encoded(orientation: int = 1, **options) -> bytes:
    """A JPEG of 75x50 pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (10, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((75, 50)).save(buffer, "JPEG", **{"exif": exif, **options})
    return buffer.getvalue()


KINDS = {
    "baseline": encoded(),
    "progressive": encoded(progressive=True),
    "444": encoded(subsampling=0),
    "422": encoded(subsampling=1),
    "restarts": encoded(restart_marker_rows=1),
    "trailing bytes": encoded() + b"\0" * 100,
    "png": picture(3, 50, 75, "PNG"),
    "webp": picture(3, 50, 75, "WEBP"),
} | {f"orientation {n}": encoded(n) for n in range(10)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_is_that_part_of_the_whole_image(kind: str, decoder: bool) -> None:
    reference = whole(KINDS[kind])
    opened = open_image(KINDS[kind], MAX_PIXELS)
    assert (opened.height, opened.width) == reference.shape[:2]
    boxes = [(0, 0, *reference.shape[:2]), (3, 7, 17, 21), (33, 0, 17, 1), (0, 40, 1, 10)]
    for top, left, height, width in boxes:
        found = opened.region(top, left, height, width)
        assert found.dtype == np.uint8
        assert np.array_equal(found, reference[top : top + height, left : left + width])


def test_an_orientation_only_in_xmp_is_applied(decoder: bool) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    upright = decode(encoded(exif=b"", xmp=xmp), MAX_PIXELS)
    assert upright.shape == (75, 50, 3)
    assert np.array_equal(upright, decode(encoded(6), MAX_PIXELS))
    both = decode(encoded(3, xmp=xmp), MAX_PIXELS)  # EXIF goes before
    assert np.array_equal(both, decode(encoded(3), MAX_PIXELS))


def test_hostile_images_have_the_same_outcome_with_and_without_the_decoder_of_regions(
    hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(data: bytes) -> np.ndarray | str:
        try:
            return decode(data, MAX_PIXELS)
        except DecodeError as error:
            return str(error)

    for path in sorted((hostile / "images").rglob("*.*")):
        monkeypatch.undo()
        found = outcome(path.read_bytes())
        monkeypatch.setattr(jpeg, "AVAILABLE", False)
        np.testing.assert_array_equal(found, outcome(path.read_bytes()), err_msg=path.name)


def test_a_jpeg_without_its_end_is_rejected_even_if_the_region_is_there(decoder: bool) -> None:
    for cut in (encoded()[:-2], encoded()[:-200], encoded(progressive=True)[:-2]):
        with pytest.raises(DecodeError, match="truncated"):
            open_image(cut, MAX_PIXELS)


@pytest.mark.skipif(not jpeg.AVAILABLE, reason="nvidia-nvimgcodec-cu12 is not installed")
def test_opening_a_plain_jpeg_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "decode_region", lambda *box: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "open", lambda *file, **options: pytest.fail("decoded"))
    assert open_image(encoded(), 3750).width == 75
    with pytest.raises(DecodeError, match="75x50 is more than max_pixels=3749"):
        open_image(encoded(), 3749)


def test_importing_the_decoder_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import data_tools.images.decode"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_decode_the_same_regions() -> None:
    opened = open_image(KINDS["baseline"], MAX_PIXELS)
    reference = whole(KINDS["baseline"])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: opened.region(n % 30, n % 40, 20, 30), range(200)))
    for n, region in enumerate(found):
        assert np.array_equal(region, reference[n % 30 : n % 30 + 20, n % 40 : n % 40 + 30])
