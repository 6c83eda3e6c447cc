"""Names of classes: one form for all of them, so that equal names are equal everywhere."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from data_tools.errors import DataError

_SHOWN = 20
_BLANKS = re.compile("[\\s_\u200b-\u200f\u2060\ufeff-]+")  # and what nobody sees
_OTHER_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that stand for no byte
_WHOLE = re.compile("0|[1-9][0-9]{0,8}")
_WORDNET_ID = re.compile("n[0-9]{8}")


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
    return f"; {quoted_names(found[0], ' and ')} are different classes{more}"


def quoted_names(names: Sequence[str], between: str = ", ") -> str:
    """The first of some names in quotes, for messages."""
    return between.join(f"'{name}'" for name in names[:_SHOWN]) + " ..." * (len(names) > _SHOWN)


def plain_names(names: Iterable[str] | None) -> list[str] | None:
    """plain_name() of each; None for None. Lists of names are compared in this form."""
    return None if names is None else [plain_name(name) for name in names]


def parse_classes(data: bytes, path: str) -> list[list[str]]:
    """The class names in a file, in the order of the labels; further lists where each class has several.

    A .txt has a name in each line, perhaps behind a WordNet id or behind its number. JSON is a list of names,
    {"0": NAME} (perhaps as the id2label of a config.json), {NAME: 0}, or {"0": [ID, NAME]} as
    imagenet_class_index.json. DataError, naming `path` and the key or line, for all else.
    """
    try:
        names = _of_text(data.decode("utf-8-sig")) if path.lower().endswith(".txt") else _of_json(data)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = f"byte {data[error.start]:#04x} is not UTF-8: save it as UTF-8"
        elif isinstance(error, json.JSONDecodeError):
            reason = f"it is no JSON ({error}): give a .json, or a .txt with a name in each line"
        raise DataError(f"{path} does not say what the classes are: {reason}.") from error
    return [list(map(plain_name, column)) for column in zip(*names, strict=True)] or [[]]


def _of_text(text: str) -> list[tuple[str, ...]]:
    """The names in each line. ValueError, naming the line."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, line in enumerate(lines, 1):
        if not line.isprintable() or not line:
            raise ValueError(f"line {number} holds '{line}' instead of a name")
    pairs = [tuple(line.split(maxsplit=1)) for line in lines]
    if any(len(pair) < 2 for pair in pairs):
        return [(line,) for line in lines]
    if [line.split()[-1] for line in lines] == [str(number) for number in range(len(lines))]:
        return [(line.rsplit(maxsplit=1)[0], line) for line in lines]
    heads = [pair[0] for pair in pairs]
    if heads == [str(number) for number in range(1, len(heads) + 1)]:
        raise ValueError("its lines count from 1 and labels from 0: give the names alone (cut -d' ' -f2-)")
    if heads == [str(number) for number in range(len(heads))]:
        return [(name, line) for (_, name), line in zip(pairs, lines, strict=True)]
    return pairs if all(map(_WORDNET_ID.fullmatch, heads)) else [(line,) for line in lines]


def _of_json(data: bytes) -> list[tuple[str, ...]]:
    """The names of each class. ValueError, naming the key."""
    content = json.loads(data, object_pairs_hook=_without_doubles)
    if isinstance(content, dict):
        content = content.get("id2label", content)
    if isinstance(content, list):
        pairs = list(enumerate(content))
    elif not isinstance(content, dict):
        raise ValueError("it is neither a list of names nor a map between names and numbers")
    elif all(type(number) is int for number in content.values()):
        pairs = [(number, name) for name, number in content.items()]
    else:
        if odd := next((key for key in content if not _WHOLE.fullmatch(key)), None):
            raise ValueError(f"key '{odd[:40]}' is no number of a class, and not all values are numbers")
        pairs = [(int(key), names) for key, names in content.items()]
    found: dict[int, tuple[str, ...]] = {}
    for number, names in sorted(pairs, key=lambda pair: pair[0]):
        names = names if isinstance(names, list) and isinstance(content, dict) else [names]
        if number in found:
            raise ValueError(f"'{names[0]}' and '{found[number][0]}' have the same number, {number}")
        if number != len(found):
            raise ValueError(f"no class has the number {len(found)}, but {names!r:.40} has {number}")
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"class {number} has {names!r:.40} instead of a name")
        if found and len(names) != len(found[0]):
            raise ValueError(f"class {number} has {len(names)} names and class 0 has {len(found[0])}")
        found[number] = tuple(names)
    return list(found.values())


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"it has the key '{double[:40]}' twice")
    return found
