"""manifest.json and state.json of a checkpoint. Neither is trusted: what does not fit is reported as damage.

    manifest.json  {"sha256": of the rest, "format", "step",
                    "files": {name: {"size", "sha256"}},
                    "tensors": {key: {"shape": [...], "pieces": [[offset, length, file], ...]}}}

The pieces of a tensor are ranges of the flattened tensor, each in another file, that cover it once.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from reprlib import Repr
from typing import Any

from safetensors import SafetensorError

from data_tools.errors import DataError, retrying

FORMAT = "vit-pretrain-checkpoint-v1"
FILE = re.compile(r"state\.json|rank-[0-9]{5,9}\.(json|safetensors)")
MAX_DIMENSIONS = 8
SHA256 = re.compile(r"[0-9a-f]{64}")

# The types of the keys of state.json. Only its step must be there.
STATE: dict[str, type] = {
    **dict.fromkeys(("step", "position", "images", "processes", "micro_batch_size", "num_classes"), int),
    **dict.fromkeys(("objective", "optimizer", "run_id"), str),
    **dict.fromkeys(("order", "model", "preprocessing", "optimizer_steps", "engine"), dict),
    "frozen": list,
}

_repr = Repr()
_repr.maxstring = 100
shortened = _repr.repr


class State(dict[str, Any]):
    """The content of state.json in `folder`. Reading a key that is missing raises DataError."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.folder = folder

    def __missing__(self, key: str) -> Any:
        raise DataError(f"{self.folder}: state.json lacks {key}", shared=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of manifest.json, all of it checked. Raises DataError that names the first thing wrong."""
    try:
        manifest = _parse(folder, "manifest.json", read_regular(folder, "manifest.json"))
        fits = manifest.pop("sha256", None) == digest_of(manifest)
    except RecursionError:
        raise DataError(f"{folder}: manifest.json is damaged: it is nested too deeply") from None
    if not fits:
        raise DataError(f"{folder}: manifest.json is damaged: its sha256 does not fit its content")
    if manifest.get("format") != FORMAT:
        written = shortened(manifest.get("format"))
        raise DataError(f"{folder}: written in format {written}; this version reads {FORMAT}")
    files = manifest.get("files", {})
    wrong = _wrong_files(files) or _wrong_tensors(manifest.get("tensors"), files)
    if not wrong and not _is_count(manifest.get("step")):
        wrong = f"its step is {shortened(manifest.get('step'))}"
    if wrong:
        raise DataError(f"{folder}: manifest.json is damaged: {wrong}")
    return manifest


def read_state(folder: Path, manifest: dict[str, Any]) -> State:
    """The content of state.json, which must be the one that `manifest` lists. Raises DataError."""
    check_file(folder, "state.json", manifest)
    try:
        state = _parse(folder, "state.json", read_regular(folder, "state.json"))
    except RecursionError:
        raise DataError(f"{folder}: state.json is damaged: it is nested too deeply") from None
    wrong = [key for key, kind in STATE.items() if key in state and type(state[key]) is not kind]
    if not all(_is_count(steps) for steps in state.get("optimizer_steps", {}).values()):
        wrong.append("optimizer_steps")
    if not wrong and state.get("step") != manifest["step"]:
        wrong.append("step")
    if wrong:
        raise DataError(
            f"{folder}: state.json is damaged: its {wrong[0]} is {shortened(state.get(wrong[0]))}"
        )
    return State(folder, state)


def check_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raises DataError unless the file's size and sha256 are those in `manifest`."""
    wanted = manifest["files"][name]
    with reading(folder, name):
        size = regular_file(folder / name).lstat().st_size
        if size != wanted["size"]:
            raise DataError(
                f"{folder}: {name} is damaged: {size} bytes where the manifest says {wanted['size']}"
            )
        if retrying(lambda: size_and_sha256(folder / name)) != wanted:
            raise DataError(f"{folder}: {name} is damaged: its sha256 is not the manifest's")


def read_regular(folder: Path, name: str) -> bytes:
    """The content of a file of the checkpoint `folder`. Raises DataError as `reading` and `regular_file`."""
    with reading(folder, name):
        return retrying(lambda: regular_file(folder / name).read_bytes())


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Inside this context, an error in reading the file `name` of the checkpoint `folder` is a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{folder}: {name} is missing") from None
    except OSError as error:
        raise DataError(f"{folder}: {name} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise DataError(f"{folder}: {name} is damaged: {error}") from None


def regular_file(file: Path) -> Path:
    """Returns `file`. Raises DataError if it is a link, a pipe or the like, OSError if it is missing."""
    if not stat.S_ISREG(file.lstat().st_mode):
        raise DataError(f"{file.parent}: {file.name} is damaged: a link, or no file at all")
    return file


def digest_of(body: dict[str, Any]) -> str:
    """The sha256 of a manifest without its own sha256, in hexadecimal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def size_and_sha256(file: Path) -> dict[str, Any]:
    """{"size": in bytes, "sha256": in hexadecimal}, as the manifest lists them."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def _parse(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DataError(f"{folder}: {name} is damaged ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{folder}: {name} is damaged: it is no JSON object")
    return found


def _wrong_files(files: Any) -> str:
    """What is wrong with the manifest's list of files; empty if nothing is."""
    if not isinstance(files, dict) or "state.json" not in files:
        return "it does not list state.json"
    for name, entry in files.items():
        if not FILE.fullmatch(name):
            return f"it names a file outside its folder, or one that no checkpoint has: {shortened(name)}"
        known = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
        if not known or not _is_count(entry["size"]) or not _is_sha256(entry["sha256"]):
            return f"it gives {name} no size and sha256"
    return ""


def _wrong_tensors(tensors: Any, files: dict[str, Any]) -> str:
    """What is wrong with the manifest's list of tensors; empty if nothing is."""
    if not isinstance(tensors, dict):
        return "it lists no tensors"
    for key, entry in tensors.items():
        shape, pieces = (entry.get("shape"), entry.get("pieces")) if isinstance(entry, dict) else (None, None)
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
            return f"{shortened(key)} has the shape {shortened(shape)}"
        if not isinstance(pieces, list) or not all(_is_piece(piece, files) for piece in pieces):
            return f"{shortened(key)} has the pieces {shortened(pieces)}"
        end = 0
        for offset, length, _ in sorted(pieces):
            if offset != end:
                break
            end += length
        if end != prod(shape) or len({name for *_, name in pieces}) != len(pieces):
            return f"the pieces of {shortened(key)} do not cover its shape {shape} once each"
    return ""


def _is_piece(piece: Any, files: dict[str, Any]) -> bool:
    if not isinstance(piece, list) or len(piece) != 3:
        return False
    offset, length, name = piece
    listed = isinstance(name, str) and name.endswith(".safetensors") and name in files
    return _is_count(offset) and _is_count(length) and length > 0 and listed


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None
