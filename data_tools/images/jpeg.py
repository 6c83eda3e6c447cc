"""Decoding a region of a plain JPEG and not the rest; the pixels are equal to Pillow's (libjpeg-turbo).

nvImageCodec decodes, on the CPU (its wheel nvidia-nvimgcodec-cu12 needs no GPU): only the columns of the
region, and only the rows down to its lower edge. AVAILABLE is False if the wheel is not installed.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discards what is written to file descriptor 2: the wheel prints there that it finds no GPU plug-ins."""
    if sys.stderr:
        sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # we report ourselves what cannot be decoded
try:
    with _quiet_stderr():
        from nvidia import nvimgcodec
    AVAILABLE = True
except ImportError:
    AVAILABLE = False

_CPU_ONLY = -99999  # nvimgcodec's number for "no device"
_MIN_HEADER = 4
_MIN_COLUMNS = 8
_START_OF_SCAN, _APP1, _APP2 = 0xDA, 0xE1, 0xE2
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"  # then the number of the part, how many there are, and the part; ICC.1 B.4
# Sequential and progressive DCT with Huffman coding. The other markers from 0xC0 to 0xCF are tables, or
# frames (lossless, hierarchical, arithmetic) that Pillow decodes.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))


@dataclass(frozen=True)
class Header:
    """Sides in pixels, before the image is turned upright; EXIF and XMP blocks, colour profile.

    Blocks are empty if there are none. grey: there is one component and not three.
    """

    height: int
    width: int
    grey: bool
    exif: bytes
    xmp: bytes
    icc: bytes


def read_header(data: bytes) -> Header | None:
    """The header of a plain, complete JPEG of 8 bits, grey or with three colours; None for anything else.

    Complete: an end marker follows the first scan. Format: Rec. ITU-T T.81, annex B.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame, exif, xmp, at = None, b"", b"", 2
    icc: list[bytes] = []
    while True:
        if len(data) < at + _MIN_HEADER or data[at] != 0xFF or data[at + 1] in _WITHOUT_LENGTH:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN:
            break
        if marker in _PLAIN_FRAMES:
            if frame or length < 8 or len(data) < at + 10:
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or components not in (1, 3) or not height or not width:
                return None
            frame = height, width, components == 1
        elif marker in _OTHER_FRAMES or length < 2:
            return None
        elif marker == _APP1:
            segment = data[at + 4 : at + 2 + length]
            if segment.startswith(_EXIF):
                if exif:
                    return None  # an EXIF block in several segments is rare
                exif = segment
            elif segment.startswith(_XMP):
                xmp = segment
        elif marker == _APP2 and data.startswith(_ICC, at + 4):
            icc.append(data[at + 4 + len(_ICC) : at + 2 + length])
        at += 2 + length
    if frame is None or data.rfind(b"\xff\xd9", at) < 0:
        return None
    return Header(*frame, exif, xmp, _joined(icc))


def _joined(parts: list[bytes]) -> bytes:
    """The profile of these APP2 segments, as Pillow joins them; empty if their number is another."""
    parts = sorted(parts)
    complete = parts and len(parts[0]) > 1 and parts[0][1] == len(parts)
    return b"".join(part[2:] for part in parts) if complete else b""


_thread = threading.local()


def decode_region(data: bytes, top: int, left: int, height: int, width: int) -> NDArray[np.uint8] | None:
    """The RGB pixels (height, width, 3) of a box, before the image is turned upright.

    None if the decoder refuses the data, and for less than 8 columns: libjpeg-turbo interpolates the
    colours of very narrow regions in another way than those of whole images.
    """
    if width < _MIN_COLUMNS:
        return None
    if not hasattr(_thread, "decoder"):
        _thread.decoder = nvimgcodec.Decoder(
            device_id=_CPU_ONLY, backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)], max_num_cpu_threads=1
        )
        _thread.params = nvimgcodec.DecodeParams(apply_exif_orientation=False)
    try:
        stream = nvimgcodec.CodeStream(data)
        box = nvimgcodec.Region(top, left, top + height, left + width)
        image = _thread.decoder.decode(stream.get_sub_code_stream(region=box), params=_thread.params)
    except RuntimeError:
        return None
    if image is None or image.shape != (height, width, 3):
        return None
    return image.__array__()  # np.asarray() leaks 32 bytes a call in nvimgcodec 0.9
