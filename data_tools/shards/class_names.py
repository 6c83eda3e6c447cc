"""Names of classes: one form for all of them, so that equal names are equal everywhere."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

from data_tools.errors import DataError

_BLANKS = re.compile("[\\s_\u200b-\u200f\u2060\ufeff-]+")  # and what nobody sees
_OTHER_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that stand for no byte


def plain_name(name: str) -> str:
    """escaped(`name`) in Unicode's form NFC; macOS writes NFD."""
    return name if name.isascii() else unicodedata.normalize("NFC", escaped(name))


def escaped(text: str) -> str:
    """`text` with what is no valid Unicode shown escaped, so that it can be written to every file.

    A byte of a file name that is not UTF-8, which Python holds as a surrogate, becomes \\xe9 or the like.
    Bytes that are UTF-8 become letters, also where Python held them as surrogates because the locale is C.
    """
    if text.isascii():
        return text
    text = _OTHER_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def alike(names: Iterable[str]) -> str:
    """The end of a sentence on names that differ only in case, blanks or leading zeros; "" without any."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=str.encode):
        bare = _BLANKS.sub("", unicodedata.normalize("NFKC", name).casefold())
        groups.setdefault(bare.lstrip("0") or "0" if bare.isdigit() else bare, []).append(name)
    found = [group for group in groups.values() if len(group) > 1]
    if not found:
        return ""
    more = f", and so are {len(found) - 1} more groups" if len(found) > 1 else ""
    return f"; {' and '.join(map(repr, found[0]))} are different classes{more}"


def plain_names(names: Iterable[str] | None) -> list[str] | None:
    """plain_name() of each; None for None. Lists of names are compared in this form."""
    return None if names is None else [plain_name(name) for name in names]


def parse_classes(data: bytes, path: str) -> list[str]:
    """The class names of a classes.json, in the order of their labels; DataError naming `path`."""
    try:
        classes = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}): write it again.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{path} must be a JSON list of class names in the order of the labels.")
    return [plain_name(name) for name in classes]
