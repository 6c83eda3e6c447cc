"""Formats of images: what training reads, what pack can write anew, and what it can only name.

The content decides, not a file's name. Extensions are in lower case, without the dot.
"""

from __future__ import annotations

# Pillow's names. "JPEG" includes MPO, a JPEG of a phone with a second picture inside.
READ = ("JPEG", "PNG", "WEBP")
CONVERTED = ("GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
CONVERTED_NAMES = frozenset(("GIF", "BMP", "TIFF", "AVIF", "JPEG 2000", "PPM"))  # of other_format()

# What shards call the formats that training reads.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
READ_AS = {"jpg": "jpg", "jpeg": "jpeg", "png": "png", "webp": "webp", "jfif": "jpg", "jpe": "jpg"}
_OTHERS = {
    "converted": "gif bmp dib tif tiff avif jp2 j2k j2c jpc jpf jpx pbm pgm ppm pnm",
    "unread": "heic heif avifs jxl jxr svg svgz psd xcf ico tga pcx exr hdr eps wmf emf dcm "
    "dng cr2 cr3 nef arw orf rw2 raf raw",
}
CONVERTED_EXTENSIONS = frozenset(_OTHERS["converted"].split())
UNREAD_EXTENSIONS = frozenset(_OTHERS["unread"].split())

_FIRST_BYTES = (
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "PSD"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header behind the first 14 bytes
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)


def no_image(data: bytes) -> str | None:
    """What bytes are that begin as no known image: a Git LFS pointer or no image; None for an image."""
    if data[:2] == b"\xff\xd8" or data[:8] == b"\x89PNG\r\n\x1a\n" or data[8:12] == b"WEBP":
        return None
    if other_format(data):
        return None
    return "Git LFS pointer" if data.startswith(b"version https://git-lfs") else "no image"


def other_format(data: bytes) -> str | None:
    """The name of a known image format that training does not read, such as GIF; else None."""
    for first, name in _FIRST_BYTES:
        if data.startswith(first):
            return name
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    if data[4:8] == b"ftyp":  # ISO base media: the major brand, a version, then compatible brands
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = [data[at : at + 4] for at in (8, *range(16, end, 4))]
        names = {_BRANDS[brand] for brand in brands if brand in _BRANDS}
        return "AVIF" if "AVIF" in names else next(iter(names), None)
    return None
