"""Small files that the tests make for themselves."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image


def picture(number: int, height: int = 40, width: int = 56, kind: str = "JPEG") -> bytes:
    """A noisy encoded picture, different for each number."""
    random = np.random.default_rng(number)
    small = random.integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def photo(number: int, height: int, width: int) -> bytes:
    """A JPEG whose fine detail is as rare as in photographs: amplitudes fall as 1 / frequency."""
    random = np.random.default_rng(number)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    planes = [np.fft.irfft2(np.fft.rfft2(random.standard_normal((height, width))) / frequency) for _ in "RGB"]
    pixels = np.stack([128 + 60 * plane / plane.std() for plane in planes], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> None:
    """A tar written with Python's tarfile."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 0.5  # webdataset writes fractions too, which need a PAX header
            tar.addfile(info, io.BytesIO(data))


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content, of all files below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def originals(shards: Path) -> dict[str, tuple[bytes, int]]:
    """Original path -> (image, label), read with the webdataset library."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        meta = json.loads(sample["json"])
        image = next(sample[kind] for kind in ("jpg", "jpeg", "png", "webp") if kind in sample)
        assert meta["path"] not in found
        found[meta["path"]] = image, meta["label"]
    return found
