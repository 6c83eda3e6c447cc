"""Checkpoints: one folder of safetensors and JSON, the same under every engine and at every size.

    checkpoints/
        latest                      text: the name of the newest complete checkpoint
        best                        JSON: the one with the highest top-1, where it is kept
        step-00001000/
            rank-00000.safetensors  flat fp32 ranges, keyed KIND/PARAMETER; KIND: model, exp_avg, ema, ...
            rank-00000.json         which range each of them is, size and sha256 of the file
            rank-00001.safetensors  ...
            state.json              step, position, seed, order, classes, preprocessing, ...
            manifest.json           size and sha256 of every file, shape and pieces of every tensor
        step-00002000.tmp/          being written; never read
        step-00003000.damaged/      set aside at a start that went on from an older one; never read

Nothing in it can run code. A folder gets its final name only when every file in it is complete and on
the disk, and `latest` moves after that, so a stop at any moment leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from data_tools.errors import DataError, UsageError

from .manifest import check_file, plain, read_manifest, read_state, reading

if TYPE_CHECKING:
    from ..engine.ranges import LocalRange
    from ..run.processes import World

NAME = re.compile(r"step-[0-9]{8,18}")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def temporary_folder(final: Path) -> Path:
    """Where a checkpoint lies while it is written, or deleted."""
    return final.with_name(final.name + ".tmp")


def complete(root: Path) -> list[Path]:
    """The published checkpoints under `root`, newest first."""
    try:
        found = [path for path in root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"{root}: it cannot be read: {error.strerror}; check its permissions") from None
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


class Checkpoint:
    """A published checkpoint. Opening reads manifest and state only; raises DataError if they are damaged.

    path: its folder. state: content of state.json. tensors: {key: whole shape}. size: its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = read_manifest(path)
        self.tensors = {key: tuple(entry["shape"]) for key, entry in self._manifest["tensors"].items()}
        self.size = sum(entry["size"] for entry in self._manifest["files"].values())
        self.state = read_state(path, self._manifest)
        self.step: int = self.state["step"]
        if NAME.fullmatch(path.name) and path.name != step_folder(path.parent, self.step).name:
            raise DataError(f"{path}: its content is that of step {self.step}: a renamed or mixed-up folder")
        self._open: dict[str, Any] = {}

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Check size, sha256 and header of every file, or of one of `parts` shares. Raises DataError."""
        for name in sorted(self._manifest["files"])[part::parts]:
            check_file(self.path, name, self._manifest)
            if name.endswith(".safetensors"):
                self._open_file(name)

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor `key`, fp32."""
        out = torch.empty(stop - start)
        for offset, length, name in self._manifest["tensors"][key]["pieces"]:
            low, high = max(start, offset), min(stop, offset + length)
            if low < high:
                piece = self._file(name).get_slice(key)[low - offset : high - offset]
                out[low - start : high - start] = piece
        return out

    def whole(self, key: str) -> Tensor:
        """The tensor `key` in its shape, fp32."""
        shape = self.tensors[key]
        return self.read(key, 0, prod(shape)).view(shape)

    def has(self, kind: str) -> bool:
        """Whether it holds tensors of `kind`: model, exp_avg, ema, ..."""
        return any(key.startswith(kind + "/") for key in self.tensors)

    def weights(self, which: str = "auto") -> dict[str, str]:
        """{parameter: key of its values}.

        which: "ema": averaged, and as trained where a parameter is frozen; "last": as trained; "auto":
        averaged if the run kept averages. Raises UsageError if "ema" is asked for and there is none.
        """
        if which == "ema" and not self.has("ema"):
            raise UsageError(f"{self.path}: it has no averaged weights: its run had optim.ema=0")
        kinds = ("model",) if which == "last" else ("model", "ema")
        found: dict[str, str] = {}
        for kind in kinds:
            found |= {key[len(kind) + 1 :]: key for key in self.tensors if key.startswith(kind + "/")}
        return found

    def model(self, which: str = "last") -> dict[str, Tensor]:
        """All parameters of the model, whole, by name; `which` as in `weights`."""
        return {name: self.whole(key) for name, key in sorted(self.weights(which).items())}

    def load_into(self, ranges: Iterable[LocalRange], leave_out: str = "") -> None:
        """Copy the saved values into the live ranges, but for those of the kind `leave_out`.

        Raises UsageError naming the first tensor that only one side has, or whose shape differs.
        """
        ranges = [item for item in ranges if not leave_out or not item.key.startswith(leave_out + "/")]
        wanted = {item.key: item.shape for item in ranges}
        saved = [key for key in self.tensors if not leave_out or not key.startswith(leave_out + "/")]
        for key in [*wanted, *saved]:
            if key not in self.tensors:
                raise UsageError(
                    f"{self.path}: it lacks {key}, which this configuration has with shape "
                    f"{list(wanted[key])}",
                    shared=True,
                )
            if key not in wanted:
                raise UsageError(
                    f"{self.path}: it holds {key} with shape {list(self.tensors[key])}, which this "
                    f"configuration has not",
                    shared=True,
                )
            if self.tensors[key] != wanted[key]:
                raise UsageError(
                    f"{self.path}: {key} has shape {list(self.tensors[key])}, this configuration "
                    f"has {list(wanted[key])}",
                    shared=True,
                )
        for item in ranges:
            item.data.copy_(self.read(item.key, item.offset, item.offset + item.data.numel()))

    @cached_property
    def _contents(self) -> dict[str, dict[str, int]]:
        """{file: {tensor: how many of its values are in there}}."""
        contents: dict[str, dict[str, int]] = {}
        for key, entry in self._manifest["tensors"].items():
            for _, length, name in entry["pieces"]:
                contents.setdefault(name, {})[key] = length
        return contents

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._open_file(name)
        return self._open[name]

    def _open_file(self, name: str) -> Any:
        """A safetensors file that holds what the manifest says: all of it, nothing else, flat fp32."""
        wanted = self._contents.get(name, {})
        with reading(self.path, name):
            file = safe_open(plain(self.path / name), "pt")
            names = set(file.keys())
            if unmatched := sorted(names ^ wanted.keys()):
                raise DataError(
                    f"{self.path}: {name} is damaged: only it or the manifest has {unmatched[0]!r}"
                )
            for key in names:
                piece = file.get_slice(key)
                if piece.get_dtype() != "F32" or piece.get_shape() != [wanted[key]]:
                    raise DataError(
                        f"{self.path}: {name} is damaged: {key!r} is {piece.get_dtype()} "
                        f"{piece.get_shape()} where the manifest says F32 [{wanted[key]}]"
                    )
        return file


def is_checkpoint(path: Path) -> bool:
    """Whether the folder `path` is one checkpoint, and not a run."""
    return os.path.isfile(path / "manifest.json") or bool(NAME.fullmatch(path.name) and os.path.isdir(path))


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`, or the newest whole one of the run in folder `path`, verified.

    Prints what is damaged where an older one is taken. Raises UsageError if it is neither, DataError if
    nothing whole is left.
    """
    single = is_checkpoint(path)
    candidates = [path] if single else complete(path / "checkpoints")
    if not candidates:
        raise UsageError(f"{path}: not a run with a checkpoint, nor a checkpoint: check the path")
    damage = ""
    for candidate in candidates:
        try:
            found = Checkpoint(candidate)
            found.verify()
        except DataError as error:
            damage = damage or str(error)
            continue
        if damage:
            print(f"{damage}; using {candidate.name}")
        return found
    raise DataError(damage if single else f"{damage}; no older checkpoint of {path} is whole")


def newest(root: Path, world: World) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under `root` whose files are whole, and what was wrong with newer ones.

    Every process checks a share of the files. Raises DataError if there are checkpoints, all damaged.
    """
    damaged: list[str] = []
    for name in world.gather([path.name for path in complete(root)])[0]:
        path, found, error = root / name, None, ""
        try:
            found = Checkpoint(path)
            found.verify(world.rank, world.size)
        except DataError as raised:
            error = str(raised)
        errors = [text for text in world.gather(error) if text]
        if not errors:
            return found, damaged
        damaged.append(errors[0])
    if damaged:
        raise DataError(
            f"{damaged[0]}; no older checkpoint is whole: remove {root} to start over", shared=True
        )
    return None, []
