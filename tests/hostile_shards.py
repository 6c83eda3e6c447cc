"""Tar files that are damaged, lying or odd, made from a fixed seed. Labels are 0 to 3.

The code that some hold in pickles only sets VIT_HOSTILE_PICKLE_RAN or raises PICKLE_WAS_EXECUTED.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_images import TEXT, images, random_bytes
from sample_files import picture

Members = list[tuple[str | tarfile.TarInfo, bytes]]
JPEGS = [picture(number, 48, 64) for number in range(4)]
BLOCK = tarfile.BLOCKSIZE
SIZE, CHECKSUM = slice(124, 136), slice(148, 156)  # of a header
BAD_LABELS = {
    "notint": b"cat",
    "empty": b"",
    "float": b"1.0",
    "negative": b"-1",
    "plus": b"+1",
    "too_big": b"4",
    "huge": b"9" * 40,
    "hex": b"0x1",
    "underscore": b"1_0",
    "arabic_digit": "\u0661".encode(),
    "nul": b"1\0",
    "two": b"1 2",
    "bom": b"\xef\xbb\xbf1",
    "utf16": "1".encode("utf-16-le"),
    "nan": b"nan",
}


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (_damaged() | _samples()).items():
        (folder / (name if "." in name else f"{name}.tar")).write_bytes(data)


class Runs:
    """Unpickled, it runs `code`."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return exec, (self.code,)


SETS = Runs("import os; os.environ['VIT_HOSTILE_PICKLE_RAN'] = '1'")
RAISES = Runs("raise ValueError('PICKLE_WAS_EXECUTED')")


def tar(members: Members, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(number: int, key: str | None = None, label: int | None = None) -> Members:
    key = f"s{number:04d}" if key is None else key
    return [(f"{key}.jpg", JPEGS[number]), (f"{key}.cls", b"%d" % (number if label is None else label))]


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _damaged() -> dict[str, bytes]:
    """control, and what is made of its bytes."""
    control = tar([member for number in range(4) for member in sample(number)])
    with tarfile.open(fileobj=io.BytesIO(control)) as archive:
        members = archive.getmembers()
    third, last = members[4], members[-1]
    content, end = third.offset_data, last.offset_data + BLOCK

    def with_header(change: Callable[[bytearray], None], checked: bool = True) -> bytes:
        """control with a change to the header of the third sample's image."""
        data = bytearray(control)
        header = data[third.offset : third.offset + BLOCK]
        change(header)
        if checked:
            header[CHECKSUM] = b" " * 8
            header[CHECKSUM] = b"%06o\0 " % sum(header)
        data[third.offset : third.offset + BLOCK] = header
        return bytes(data)

    def size(field: bytes) -> Callable[[bytearray], None]:
        def change(header: bytearray) -> None:
            header[SIZE] = field

        return change

    def wrong_checksum(header: bytearray) -> None:
        header[CHECKSUM] = b"000000\0 "

    def zeros(header: bytearray) -> None:
        header[:] = bytes(BLOCK)

    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive_of_one:
        archive_of_one.writestr("a", "")
    bomb = tar([("s0000.jpg", bytes(60_000_000)), ("s0000.cls", b"0")])
    return {
        "control": control,
        "trunc_in_member": control[: content + third.size // 2],
        "trunc_in_header": control[: third.offset + 200],
        "trunc_at_member_edge": control[: third.offset],
        "no_end_blocks": control[:end],
        "bad_header_checksum": with_header(wrong_checksum, checked=False),
        "zero_block_in_middle": with_header(zeros, checked=False),
        "concatenated": control + tar([*sample(0, "t0000"), *sample(1, "t0001")]),
        "trailing_garbage": control + random_bytes(2048),
        "size_lie_8GiB": with_header(size(b"7" * 11 + b"\0")),
        "negative_size": with_header(size(b"\xff" * 12)),
        "empty": tar([]),
        "zero_bytes": b"",
        "not_a_tar": random_bytes(4096),
        "zip_named": zipped.getvalue(),
        "gzip_named": gzip.compress(control, mtime=0),
        "control.tar.gz": gzip.compress(control, mtime=0),
        "gzip_bomb.tar.gz": gzip.compress(bomb, 1, mtime=0),
    }


def _samples() -> dict[str, bytes]:
    """Whole tar files with odd members."""
    image = JPEGS[1]
    label = ("s0001.cls", b"1")
    found: dict[str, Members] = {
        "traversal": [
            *sample(0),
            *sample(1, "../../evil"),
            ("../../evil.txt", b"written outside"),
            *sample(2),
        ],
        "absolute_path": [*sample(0), *sample(1, "/evil_abs/x")],
        "backslash_path": [*sample(0), *sample(1, "..\\..\\evil"), ("C:\\evil.jpg", image)],
        "symlink": [*sample(0), special("s0001.jpg", tarfile.SYMTYPE, "../../../../etc/hostname"), label],
        "symlink_dir_then_file": [special("d", tarfile.SYMTYPE, ".."), *sample(0, "d/s0000")],
        "hardlink": [*sample(0), special("s0001.jpg", tarfile.LNKTYPE, "s0000.jpg"), label],
        "device_fifo": [
            *sample(0),
            special("s0001.jpg", tarfile.FIFOTYPE),
            special("s0002.jpg", tarfile.CHRTYPE),
        ],
        "directories_and_pax": [
            special("train", tarfile.DIRTYPE),
            *sample(0, "train/s0000"),
            *sample(1, f"train/{'x' * 150}_日本語"),
        ],
        "gnu_long_name": sample(0, "y" * 150),
        "pickle_member": [
            *sample(0),
            *sample(1),
            ("s0001.pyd", pickle.dumps(SETS)),
            *sample(2),
            ("s0002.pickle", pickle.dumps(RAISES)),
            *sample(3),
            ("s0003.pth", pickle.dumps(SETS)),
            ("s0003.npy", _object_array()),
        ],
        "image_without_label": [*sample(0), ("s0001.jpg", image), *sample(2)],
        "label_without_image": [*sample(0), label, *sample(2)],
        "duplicate_key_adjacent": [*sample(0), *sample(1), *sample(2, "s0001"), *sample(3)],
        "duplicate_key_apart": [*sample(0), *sample(1), *sample(2), *sample(0)],
        "interleaved_keys": [member for pair in zip(sample(0), sample(1), strict=True) for member in pair],
        "two_images_one_key": [
            *sample(0),
            ("s0001.jpg", image),
            ("s0001.png", picture(1, 48, 64, "PNG")),
            label,
        ],
        "two_labels_one_key": [*sample(0), *sample(1), ("s0001.json", b'{"label": 3}')],
        "labels_not_integer_or_out_of_range": [
            *sample(0),
            *(
                member
                for name, data in BAD_LABELS.items()
                for member in ((f"bad_{name}.jpg", image), (f"bad_{name}.cls", data))
            ),
            *sample(3),
        ],
        "label_with_newline": [
            ("s0000.jpg", JPEGS[0]),
            ("s0000.cls", b"2\n"),
            ("s0001.jpg", image),
            ("s0001.cls", b"3\r\n"),
        ],
        "label_out_of_range": [*sample(0), *sample(1, label=1000), *sample(2)],
        "keys_with_dots_and_case": [
            *sample(0, "img.v1.0001"),
            *sample(1, "img.v1.0002"),
            ("UP.JPG", JPEGS[2]),
            ("UP.CLS", b"2"),
        ],
        "same_name_in_two_dirs": [*sample(0, "a/0001"), *sample(1, "b/0001")],
        "bad_images_inside": [
            *sample(0),
            ("s0001.jpg", images()["trunc_half.jpg"][1]),
            label,
            ("s0002.jpg", TEXT),
            ("s0002.cls", b"2"),
            ("s0003.jpg", b""),
            ("s0003.cls", b"3"),
            ("s0004.png", images()["bomb_60000x60000_claim.png"][1]),
            ("s0004.cls", b"0"),
            *sample(3, "s0005", 1),
        ],
        "all_bad": [
            member
            for number in range(4)
            for member in ((f"s{number:04d}.jpg", b"none"), (f"s{number:04d}.cls", b"0"))
        ],
        "pad_member_names": [
            *sample(0),
            ("._s0001.jpg", b"\0\5\x16\7" + bytes(40)),
            ("__MACOSX/._s0001.cls", b"x"),
            (".DS_Store", b"\0\0\0\1Bud1"),
            ("README", b"x\n"),
            *sample(2),
        ],
    }
    kinds = {"directories_and_pax": tarfile.PAX_FORMAT, "gnu_long_name": tarfile.GNU_FORMAT}
    return {name: tar(members, kinds.get(name, tarfile.USTAR_FORMAT)) for name, members in found.items()}


def _object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([RAISES], dtype=object), allow_pickle=True)
    return buffer.getvalue()


# Refused as a whole: what the error says.
REFUSED = {
    "trunc_in_member": "cut short",
    "trunc_in_header": "cut short",
    "trunc_at_member_edge": "cut short",
    "no_end_blocks": "cut short",
    "bad_header_checksum": "damaged header at byte",
    "zero_block_in_middle": "behind its end-of-archive marker",
    "concatenated": "behind its end-of-archive marker",
    "trailing_garbage": "behind its end-of-archive marker",
    "size_lie_8GiB": "cut short",
    "negative_size": "impossible size",
    "empty": "no usable sample",
    "zero_bytes": "is empty",
    "not_a_tar": "not a tar file",
    "zip_named": "is a zip file",
    "gzip_named": "gzip",
    "control.tar.gz": "is compressed",
    "gzip_bomb.tar.gz": "is compressed",
}

# Read: the keys and labels of the good samples; a part of each reason for what is left out; the
# number of members that are ignored.
READ = {
    "control": ({"s0000": 0, "s0001": 1, "s0002": 2, "s0003": 3}, [], 0),
    "symlink": ({"s0000": 0}, ["s0001.jpg is a link"], 0),
    "symlink_dir_then_file": (None, ["is a link"], 0),
    "hardlink": ({"s0000": 0}, ["s0001.jpg is a link"], 0),
    "device_fifo": (None, ["device", "device"], 0),
    "traversal": (None, ["not a relative path"], 0),
    "absolute_path": (None, ["not a relative path"], 0),
    "backslash_path": (None, ["not a relative path"], 0),
    "directories_and_pax": (None, [], 0),
    "gnu_long_name": (None, [], 0),
    "pickle_member": (None, [], 4),
    "image_without_label": ({"s0000": 0, "s0002": 2}, ["no label"], 0),
    "label_without_image": ({"s0000": 0, "s0002": 2}, ["no image"], 0),
    "duplicate_key_adjacent": ({"s0000": 0, "s0003": 3}, ["2 images"], 0),
    "duplicate_key_apart": ({"s0001": 1, "s0002": 2}, ["2 images"], 0),
    "interleaved_keys": ({"s0000": 0, "s0001": 1}, [], 0),
    "two_images_one_key": ({"s0000": 0}, ["2 images"], 0),
    "two_labels_one_key": (None, [], 0),
    # 1.0, and 1 with a mark of UTF-8 before it, are 1.
    "labels_not_integer_or_out_of_range": (
        {"s0000": 0, "bad_float": 1, "bad_bom": 1, "s0003": 3},
        ["not an integer"] * 10 + ["has 4 classes", "is empty", "several labels"],
        0,
    ),
    "label_with_newline": (None, [], 0),
    "label_out_of_range": (None, ["label 1000, but classes.json has 4 classes"], 0),
    "keys_with_dots_and_case": (None, ["first dot", "first dot"], 2),
    "same_name_in_two_dirs": (None, [], 0),
    "bad_images_inside": (None, ["an image of 0 bytes"], 0),
    "all_bad": (None, [], 0),
    "pad_member_names": (None, [], 4),
}
