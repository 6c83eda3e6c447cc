"""Colour profiles that the tests make for themselves: a matrix and curves, grey, or a table."""

from __future__ import annotations

import struct
from itertools import product

# Red, green and blue as XYZ under D50, in the columns.
ADOBE_RGB = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
_D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """A display whose colours have these primaries and one gamma."""
    columns = [tuple(row[n] for row in primaries) for n in range(3)]
    tags = {f"{name}XYZ": _xyz(column) for name, column in zip("rgb", columns, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {f"{name}TRC": _curve(gamma) for name in "rgb"})


def grey_profile(gamma: float) -> bytes:
    """A grey display of one gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A printer whose inks are all grey: lightness falls by a third with each of C, M, Y, and to 0 with K."""
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    grid = [
        bytes((round(255 * (1 - (c + m + y) / 3) * (1 - k)), 128, 128))
        for c, m, y, k in product((0, 1), repeat=4)
    ]
    table = head + bytes(range(256)) * 4 + b"".join(grid) + bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {"A2B0": table})


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[str, bytes]) -> bytes:
    text = b"test\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(8 + 3 + 67)
    tags = {"desc": described, "wtpt": _xyz(_D50), "cprt": b"text\0\0\0\0" + text} | tags
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name.encode() + struct.pack(">II", start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    white = struct.pack(">3i", *(round(value * 65536) for value in _D50))
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"\0\0\0\0", 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + table + content
