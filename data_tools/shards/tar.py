"""The headers of a tar file, read strictly: whatever could hide a lost sample is an error.

Python's tarfile stops without an error at a damaged header, at a zeroed block and where a file is cut
between two members. This reader raises an error that names the shard and the reason, and is about twenty
times as fast. It reads ustar, PAX (types x and g) and GNU long names (L). Format: POSIX.1-2017, utility
pax; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from data_tools.errors import DataError

BLOCK = 512
_ZERO = bytes(BLOCK)
_MAX_EXTENSION = 1 << 20  # bytes of one PAX or long-name record; real ones hold a path
_MAX_DIGITS = 20  # of a size
_REGULAR = (b"0", b"\0", b"7")


class Readable(Protocol):
    """The two methods of a file that are needed here."""

    def seek(self, position: int, /) -> object:
        """The next read() begins at byte `position`."""

    def read(self, length: int, /) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar. A member that is neither regular nor a folder is a link, a device or the like.

    header: the byte where its headers begin, extended ones included; offset: the byte where its data
    begins; size: bytes of its data.
    """

    name: str
    regular: bool
    folder: bool
    header: int
    offset: int
    size: int


def scan(file: Readable, shard: str, size: int) -> Iterator[Member]:
    """Every member of the tar `file` of `size` bytes, in order, without reading its data.

    Raises DataError, naming `shard`, unless the file is a complete, plain tar that ends in zeroed blocks.
    """
    position = 0
    global_records: dict[str, str] = {}
    if size == 0:
        raise DataError(f"{shard} is empty (0 bytes): remove it or write it again.")
    while True:
        file.seek(position)
        if file.read(BLOCK) == _ZERO:
            _check_end(file, shard, position)
            return
        member, position = _member(file, shard, size, position, global_records)
        if member is not None:
            yield member


def member_name(file: Readable, shard: str, size: int, header: int) -> str:
    """The name of the member whose first header begins at byte `header`; DataError if there is none."""
    member, _ = _member(file, shard, size, header, {})
    if member is None:
        raise DataError(f"{shard} has no member at byte {header}: run python -m data_tools index.")
    return member.name


def _check_end(file: Readable, shard: str, position: int) -> None:
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise DataError(
                f"{shard} has data behind its end-of-archive marker at byte {position} (a damaged "
                "header, or several tars in one file), which would be lost: write it again."
            )


def _member(
    file: Readable, shard: str, size: int, start: int, global_records: dict[str, str]
) -> tuple[Member | None, int]:
    """The member at `start`, and where the next one begins.

    None in place of the member for a global header, whose records are then in global_records.
    """
    records: dict[str, str] = {}
    position = start
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        name, length, typeflag = _header(block, shard, position, size)
        data = position + BLOCK
        if typeflag in (b"x", b"g", b"L", b"K"):
            if length > _MAX_EXTENSION:
                raise DataError(f"{shard} has an extended header of {length} bytes at {position}.")
            content = file.read(length)
            position = _end_of(data, length, shard, size)
            if typeflag == b"L":
                records["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif typeflag in (b"x", b"g"):
                (records if typeflag == b"x" else global_records).update(_records(content, shard, data))
            if typeflag == b"g":
                return None, position
            continue
        records = global_records | records
        length = int(records.get("size", length))
        name = records.get("path", name)
        end = _end_of(data, length, shard, size) if typeflag in _REGULAR else data
        folder = typeflag == b"5" or (typeflag in _REGULAR and name.endswith("/"))
        return Member(name, typeflag in _REGULAR and not folder, folder, start, data, length), end


def _end_of(data: int, length: int, shard: str, size: int) -> int:
    end = data + (length + BLOCK - 1) // BLOCK * BLOCK
    if data + length > size:
        raise DataError(
            f"{shard} is cut short: a member of {length} bytes begins at byte {data} of {size}. "
            "Copy or write it again."
        )
    return end


def _header(block: bytes, shard: str, position: int, size: int) -> tuple[str, int, bytes]:
    if position == 0 and block[:2] == b"\x1f\x8b":
        raise DataError(f"{shard} is compressed with gzip: unpack it to a plain tar first.")
    if position == 0 and block[:4] == b"PK\3\4":
        raise DataError(f"{shard} is a zip file and not a tar: remove it or write it again.")
    if len(block) < BLOCK:
        where = "inside a header" if block else "without an end-of-archive marker"
        raise DataError(f"{shard} is cut short: it ends {where} at byte {size}. Copy it again.")
    stored = _number(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        if position == 0:
            raise DataError(f"{shard} is not a tar file: remove it or write it again.")
        raise DataError(f"{shard} has a damaged header at byte {position}: copy or write it again.")
    length = _number(block[124:136])
    if length is None or length < 0:
        raise DataError(f"{shard} has a member of impossible size at byte {position}.")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0":  # in GNU's "ustar " these bytes are other fields
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape"), length, block[156:157]


def _number(field: bytes) -> int | None:
    """The number in an octal field, or in base 256 after 0x80 (negative: 0xff); None for anything else."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and not set(digits) & set(b"89") else None


def _records(content: bytes, shard: str, position: int) -> dict[str, str]:
    """The PAX records, "LENGTH KEY=VALUE newline", that set the path or the size of a member."""
    found: dict[str, str] = {}
    start = 0
    while start < len(content):
        length, _, _ = content[start : start + 20].partition(b" ")
        end = start + int(length) if length.isdigit() else 0
        key, separator, value = content[start + len(length) + 1 : end - 1].partition(b"=")
        if end <= start or end > len(content) or not separator:
            raise DataError(f"{shard} has a damaged extended header at byte {position}.")
        if key.startswith(b"GNU.sparse"):
            raise DataError(f"{shard} holds a sparse file at byte {position}: write it as plain tar.")
        if key == b"size" and not (value.isdigit() and len(value) < _MAX_DIGITS):
            raise DataError(f"{shard} has a member of impossible size at byte {position}.")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        start = end
    return found
