"""The files of other programs: which of them are the weights, and what is in them. Pickles are never read."""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_tools.errors import DataError, UsageError
from pretrain.checkpoints.described import Strict, parse_strictly

from .descriptions import ShardIndex

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = WEIGHTS + ".index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # the types that weights may have, as safetensors calls them
PICKLES = ("*.bin", "*.pth", "*.pt", "*.pth.tar", "*.ckpt", "*.pkl")
LARGEST_JSON = 2**26  # bytes
LARGEST_RATIO = 100  # of an .npz file's content to the file itself
DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class ForeignFiles:
    """A checkpoint of another program: an .npz file, or safetensors files and their config.json's folder.

    shards: {file: names of its tensors} by the index of a checkpoint in several files; None for one file.
    """

    weights: tuple[Path, ...]
    folder: Path | None
    shards: Mapping[Path, frozenset[str]] | None = None


def find_files(path: Path) -> ForeignFiles | None:
    """The checkpoint that `path` names: its folder, its weights file or index, or an .npz file.

    None if there is no config.json. Raises UsageError for pickles, DataError where files are missing.
    """
    if path.is_file() and path.suffix == ".npz":
        return ForeignFiles((path,), None)
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / CONFIG).is_file():
        return None
    index = path if path.name.endswith(".index.json") else folder / INDEX
    if path == index or (path == folder and index.is_file() and not (folder / WEIGHTS).is_file()):
        return _sharded(index)
    if path.is_file():
        _refuse_single_shard(path, folder / INDEX)
        return ForeignFiles((path,), folder)
    if not (folder / WEIGHTS).is_file():
        if pickles := pickles_in(folder):
            refuse_pickle(*pickles)
        raise DataError(
            f"{folder}: it has {CONFIG}, but neither {WEIGHTS} nor {INDEX}{_other_weights(folder)}"
        )
    return ForeignFiles((folder / WEIGHTS,), folder)


def _other_weights(folder: Path) -> str:
    """Advice for a folder whose weights have another name, or lie somewhere else."""
    others = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".npz"))
    if others:
        return f": name the file of the weights, init={others[0]}"
    return ": put the weights beside it; of pickles, python -m finetune convert makes safetensors"


def read_tensors(files: ForeignFiles) -> dict[str, Tensor]:
    """All tensors of safetensors files. Raises DataError for damaged ones and for integers."""
    found: dict[str, Tensor] = {}
    for path in files.weights:
        try:
            file = safe_open(path, "pt")
            names = set(file.keys())
            if files.shards is not None and (unmatched := sorted(names ^ files.shards[path])):
                raise DataError(f"{path}: only it or the index of the shards has '{unmatched[0]}'")
            check_floats(path, file)
            found |= {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: damaged, missing or not a safetensors file: {error}") from None
    return found


def check_floats(path: Path, file: Any) -> None:
    """Raises DataError for a tensor of an opened safetensors file that holds no floating-point numbers."""
    for name in file.keys():  # noqa: SIM118  # it is no dictionary
        if (dtype := file.get_slice(name).get_dtype()) not in FLOATS:
            raise DataError(f"{path}: {name} holds numbers of type {dtype}, but weights are one of {FLOATS}")


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of an .npz file. Raises DataError for pickled, damaged and oversized ones."""
    try:
        with ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST_RATIO * path.stat().st_size:
                raise DataError(f"{path}: damaged: its content would be {size} bytes, too many for its size")
            for member in archive.infolist():
                with archive.open(member) as stream:
                    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                    shape, _, dtype = read[npy.read_magic(stream)](stream)
                    if dtype.kind != "f" or stream.tell() + prod(shape) * dtype.itemsize != member.file_size:
                        raise ValueError(f"{member.filename} is {dtype} {shape}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (*DAMAGE, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: damaged or not an .npz file of plain arrays: {error}") from None


def read_description(path: Path, schema: type[Strict]) -> dict[str, Any]:
    """The JSON object of a file, of which every value fits `schema`. Raises DataError."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise DataError(f"{path}: larger than {LARGEST_JSON} bytes, so no description of a model")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error.strerror}") from None
    return parse_strictly(schema, content, str(path))


def is_pickle(path: Path) -> bool:
    """Whether a file is one of torch.save or of pickle, by its content."""
    with path.open("rb") as stream:
        start = stream.read(9)
    if is_zipfile(path):
        with ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    # A header of safetensors may begin with the same two bytes, its length; then comes a brace.
    return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[8:] != b"{"


def pickles_in(folder: Path) -> list[Path]:
    """The files in a folder that are pickles, by name and content."""
    named = {path for pattern in PICKLES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in named if is_pickle(path))


def refuse_pickle(*paths: Path) -> NoReturn:
    """Raises UsageError with the command that makes a safetensors file of pickles."""
    first, folder = paths[0], paths[0].parent
    described = (folder / CONFIG).is_file()
    target = folder / (WEIGHTS if described else f"{first.name.partition('.')[0]}.safetensors")
    command = shlex.join(["python", "-m", "finetune", "convert", *map(str, paths), str(target)])
    raise UsageError(
        f"{first}: a pickle (torch.save), which could run code while it is read. Make a safetensors file of "
        f"it first, {command} , and give init={folder if described else target}"
    )


def _sharded(index: Path) -> ForeignFiles:
    names: dict[str, str] = read_description(index, ShardIndex)["weight_map"]
    shards: dict[Path, set[str]] = {}
    for name, file in names.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise DataError(f"{index}: it names '{file}', which is no safetensors file beside it")
        shards.setdefault(index.parent / file, set()).add(name)
    if not shards:
        raise DataError(f"{index}: it names no tensor")
    frozen = {path: frozenset(tensors) for path, tensors in shards.items()}
    return ForeignFiles(tuple(sorted(shards)), index.parent, frozen)


def _refuse_single_shard(path: Path, index: Path) -> None:
    """UsageError for one file of a checkpoint that has several."""
    if index.is_file() and path in (shards := _sharded(index).weights):
        raise UsageError(
            f"{path}: one of the {len(shards)} files of a checkpoint: give the folder, init={path.parent}"
        )
