"""Files that look like images and are damaged, lying, odd or awkwardly named, made from a fixed seed.

Each has a word for what becomes of it: accept; convert, accept after a conversion; reject; policy, either.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

SIZE = 192, 128  # width, height
CORNERS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
TEXT = b"This is a text and no image. " * 25


def write_images(folder: Path) -> None:
    for name, (_, data) in images().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@cache
def images() -> dict[str, tuple[str, bytes]]:
    """Name -> what becomes of it, and its bytes."""
    found: dict[str, tuple[str, bytes]] = {}
    for part in (_broken, _not_images, _too_large, _modes, _several, _exif, _sizes, _odd, _named):
        for name, want, data in part():
            assert name not in found
            found[name] = want, data
    return found


Files = Iterator[tuple[str, str, bytes]]


def random_bytes(count: int) -> bytes:
    """None is 0xff, with which JPEG's markers begin."""
    return np.random.default_rng(count).integers(1, 255, count, dtype=np.uint8).tobytes()


@cache
def picture() -> Image.Image:
    """Red, lime, blue and yellow corners, and a little noise."""
    corners = Image.fromarray(np.array(CORNERS, dtype=np.uint8))
    smooth = np.asarray(corners.resize(SIZE, Image.Resampling.BILINEAR), dtype=np.int64)
    noise = np.random.default_rng(0).integers(-5, 6, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _numbers(image: Image.Image) -> NDArray[np.uint16]:
    """8 bits as 16."""
    return np.asarray(image).astype(np.uint16) * 257


def _marker(jpeg: bytes, code: int) -> int:
    """Where the segment with this marker begins, its marker first."""
    at = 2
    while jpeg[at + 1] != code:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at


def _claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header tells of another size."""
    at = _marker(jpeg, 0xC0) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, compressed: bytes) -> bytes:
    """A PNG of these pixels as zlib has them; colour: 0 grey, 2 RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", compressed) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _zeros(count: int) -> bytes:
    """What zlib makes of `count` zeros, in blocks that do not refer to each other and so are all alike."""
    block = 10_000_000
    blocks, rest = divmod(count, block)
    middle = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = (middle.compress(bytes(block)) + middle.flush(zlib.Z_FULL_FLUSH)) * blocks
    checksum = (count % 65521 << 16) | 1  # Adler-32 of zeros
    return b"\x78\xda" + body + last.compress(bytes(rest)) + last.flush() + struct.pack(">I", checksum)


def _broken() -> Files:
    control, as_png = encoded(picture()), encoded(picture(), "PNG")
    progressive = encoded(picture(), progressive=True)
    webp = encoded(picture(), "WEBP")
    scan = _marker(control, 0xDA) + 14
    yield "00_control.jpg", "accept", control
    yield "00_control.png", "accept", as_png
    yield "trunc_no_eoi.jpg", "policy", control[:-2]
    yield "trunc_90pct.jpg", "reject", control[: len(control) * 9 // 10]
    yield "trunc_half.jpg", "reject", control[: len(control) // 2]
    yield "trunc_header.jpg", "reject", control[:40]
    yield "trunc_half.png", "reject", as_png[: len(as_png) // 2]
    yield "trunc_half.webp", "reject", webp[: len(webp) // 2]
    yield "progressive.jpg", "accept", progressive
    yield "trunc_progressive.jpg", "reject", progressive[: len(progressive) * 6 // 10]
    middle = scan + (len(control) - scan) // 3
    yield "corrupt_scan.jpg", "policy", control[:middle] + random_bytes(300) + control[middle + 300 :]
    flipped = bytearray(as_png)
    flipped[len(flipped) // 2] ^= 0xFF
    yield "bad_crc.png", "reject", bytes(flipped)
    yield "crlf_damaged.png", "reject", as_png.replace(b"\n", b"\r\n")
    yield "leading_bytes.jpg", "reject", b"\r\n" + control


def _not_images() -> Files:
    yield "zero_byte.jpg", "reject", b""
    yield "all_nul.jpg", "reject", bytes(4096)
    yield "text_named.jpg", "reject", TEXT
    yield "html_error_named.jpg", "reject", b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4859\n"
    yield "lfs_pointer_named.jpg", "reject", pointer.encode()
    yield "random_bytes.jpg", "reject", random_bytes(5000)
    yield "svg_named.png", "reject", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'


def _too_large() -> Files:
    control = encoded(picture())
    yield "bomb_60000x60000_claim.png", "reject", png(60_000, 60_000, 8, 2, zlib.compress(b"\0" * 9))
    yield "bomb_60000x60000_valid_1bit.png", "reject", png(60_000, 60_000, 1, 0, _zeros(60_000 * 7501))
    for side in (13_500, 10_000):
        data = png(side, side, 8, 0, _zeros(side * (side + 1)))
        yield f"bomb_{side}x{side}_valid_gray.png", "reject", data
    yield "bomb_sof_60000x60000.jpg", "reject", _claiming(control, 60_000, 60_000)
    yield "lie_sof_8000x8000.jpg", "reject", _claiming(control, 8000, 8000)
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("comment", "x" * 30_000_000, zip=True)
    yield "text_bomb.png", "policy", encoded(Image.new("RGB", (4, 4)), "PNG", pnginfo=bomb)


def _modes() -> Files:
    rgb, grey = picture(), picture().convert("L")
    cmyk = encoded(rgb.convert("CMYK"), quality=95)
    yield "cmyk.jpg", "convert", cmyk
    adobe = _marker(cmyk, 0xEE)
    behind = adobe + 2 + int.from_bytes(cmyk[adobe + 2 : adobe + 4], "big")
    yield "cmyk_no_adobe_marker.jpg", "policy", cmyk[:adobe] + cmyk[behind:]
    yield "gray.jpg", "convert", encoded(grey)
    yield "gray16.png", "convert", encoded(Image.fromarray(_numbers(grey)), "PNG")
    yield "gray16_low_range.png", "policy", encoded(Image.fromarray(_numbers(grey) // 64), "PNG")
    rows = [b"\0" + row.astype(">u2").tobytes() for row in _numbers(rgb)]
    yield "rgb16.png", "convert", png(*SIZE, 16, 2, zlib.compress(b"".join(rows)))
    thirds = np.array([255, 128, 0], dtype=np.uint8).repeat(SIZE[0] // 3)
    alpha = Image.fromarray(np.tile(thirds, (SIZE[1], 1)))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    yield "rgba.png", "convert", encoded(rgba, "PNG")
    yield "lossless_alpha.webp", "convert", encoded(rgba, "WEBP", lossless=True)
    palette = rgb.quantize(64)
    yield "palette.png", "convert", encoded(palette, "PNG")
    yield "palette_alpha.png", "convert", encoded(palette, "PNG", transparency=bytes(range(0, 256, 4)))
    yield "gray_alpha.png", "convert", encoded(Image.merge("LA", (grey, alpha)), "PNG")
    yield "rgb_trns.png", "convert", encoded(rgb, "PNG", transparency=(255, 0, 0))
    yield "bilevel.png", "convert", encoded(rgb.convert("1"), "PNG")
    fractions = np.asarray(grey, dtype=np.float32) / 255
    yield "float32.tif", "reject", encoded(Image.fromarray(fractions), "TIFF")
    yield "float32_nan.tif", "reject", encoded(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF")
    yield "lab.tif", "reject", encoded(Image.new("LAB", SIZE, (128, 90, 90)), "TIFF")
    yield "plain.bmp", "policy", encoded(rgb, "BMP")


def _several() -> Files:
    """Files of several pictures, and of formats that not every Pillow reads."""
    frames = [picture().resize((96, 64)).rotate(90 * turn) for turn in range(4)]
    several = {"save_all": True, "append_images": frames[1:]}
    yield "multipage.tif", "policy", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:2])
    for kind in ("gif", "webp", "png"):
        yield f"animated.{kind}", "policy", encoded(frames[0], kind.upper(), **several)
    pair = encoded(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)])
    yield "mpo_two_pictures.jpg", "accept", pair
    yield "lossy.webp", "accept", encoded(picture(), "WEBP")
    yield "still.avif", "policy", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + random_bytes(1000)
    yield "jpeg2000.jp2", "policy", b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 " + random_bytes(1000)


def _exif() -> Files:
    yield "exif_orientation_reference.png", "accept", encoded(picture(), "PNG")
    for orientation in range(10):
        turn = ORIENTATIONS.get(orientation)
        stored = picture() if turn is None else picture().transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        want = "accept" if turn is None else "convert"
        yield f"exif_orientation_{orientation}.jpg", want, encoded(stored, quality=95, exif=exif)
        if orientation == 6:
            yield "exif_orientation_6.png", "convert", encoded(stored, "PNG", exif=exif)
    garbage = b"Exif\0\0II*\0\xff\xff\xff\x7f" + random_bytes(40)
    yield "exif_garbage.jpg", "accept", encoded(picture(), exif=garbage)


def _sizes() -> Files:
    for kind, width, height in (
        ("png", 1, 1),
        ("jpg", 1, 1),
        ("jpg", 1, 5000),
        ("png", 5000, 1),
        ("jpg", 16, 2000),
        ("png", 15, 15),
        ("jpg", 3001, 17),
    ):
        data = encoded(picture().resize((width, height)), "PNG" if kind == "png" else "JPEG")
        yield f"size_{width}x{height}.{kind}", "policy", data


def _odd() -> Files:
    """Good images with something unusual about them."""
    rgb, control = picture(), encoded(picture())
    yield "trailing_garbage.jpg", "accept", control + random_bytes(3000)
    empty_zip = b"PK\5\6" + bytes(18)
    yield "trailing_zip.jpg", "accept", control + empty_zip
    yield "png_named.jpg", "accept", encoded(rgb, "PNG")
    yield "jpg_named.png", "accept", control
    yield "webp_named.JPEG", "accept", encoded(rgb, "WEBP")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "icc_srgb.jpg", "accept", encoded(rgb, icc_profile=profile)
    yield "icc_garbage.jpg", "accept", encoded(rgb, icc_profile=random_bytes(260))
    yield "icc_400k.jpg", "accept", encoded(rgb, icc_profile=random_bytes(400_000))
    yield "chroma_444.jpg", "accept", encoded(rgb, subsampling=0)
    yield "restart_markers.jpg", "accept", encoded(rgb, restart_marker_rows=1)
    yield "quality_1.jpg", "accept", encoded(rgb, quality=1)
    yield "rgb_colourspace.jpg", "accept", encoded(rgb, keep_rgb=True, quality=95)


def _named() -> Files:
    control = encoded(picture())
    for name in ("name with spaces.jpg", "naïve_日本語.jpg", "a.b.c.jpg", "-rf.jpg", "quote'and,comma.jpg"):
        yield f"names/{name}", "accept", control
    yield "names/.hidden.jpg", "policy", control
    yield "names/._00_control.jpg", "reject", b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)
    yield "names/Thumbs.db", "reject", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100)
