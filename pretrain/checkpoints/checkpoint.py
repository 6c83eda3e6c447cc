"""Checkpoints: a folder of safetensors and JSON files, in the same format for every engine and job size.

    checkpoints/
        latest                      text: the name of the newest complete checkpoint
        best                        JSON: the one with the highest score, if checkpoint.keep_best is set
        step-00001000/
            rank-00000.safetensors  flat fp32 ranges, keyed GROUP/PARAMETER; GROUP: model, exp_avg, ema, ...
            rank-00000.json         the range of each tensor; size and sha256 of the file
            rank-00001.safetensors  ...
            state.json              step, position, seed, order, classes, preprocessing, ...
            manifest.json           size and sha256 of every file, shape and pieces of every tensor
        step-00002000.tmp/          being written; never read
        step-00003000.damaged/      damaged; renamed when the run resumed from an older one; never read

Nothing in it can run code. A folder gets its final name (it is "published") only when every file in it is
complete and on the disk, and only then `latest` names it. So an interruption at any moment leaves the
previous checkpoint as it was.
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

from data_tools.errors import DataError, UsageError, is_transient, print_line, retrying

from .manifest import check_file, read_manifest, read_state, reading, regular_file

if TYPE_CHECKING:
    from ..engine.ranges import LocalRange
    from ..run.processes import World

NAME = re.compile(r"step-[0-9]{8,18}")
_ANOTHER_MODEL = ": set the model as the run's config.yaml has it, or another run.name for another model"


def step_folder(root: Path, step: int) -> Path:
    """The folder of the published checkpoint of step `step`."""
    return root / f"step-{step:08d}"


def temporary_folder(final: Path) -> Path:
    """The folder of the checkpoint `final` while it is being written or deleted."""
    return final.with_name(final.name + ".tmp")


def complete(root: Path) -> list[Path]:
    """The published checkpoints under `root`, newest first. Raises UsageError if `root` cannot be read."""
    try:
        found = [
            path
            for path in retrying(lambda: list(root.iterdir()))
            if NAME.fullmatch(path.name) and path.is_dir()
        ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        todo = "look after the disk" if is_transient(error) else "check its permissions"
        raise UsageError(f"{root}: it cannot be read: {error.strerror}; {todo}") from None
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


class Checkpoint:
    """A published checkpoint, in the folder `path`.

    Opening it reads only the manifest and state.json, and raises DataError if they are damaged. state: the
    content of state.json. tensors: {key: shape of the whole tensor}. size: in bytes.
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
        """Check size, sha256 and header of every file. Raises DataError.

        With `parts` above 1: only of share `part` (from 0) of the files.
        """
        for name in sorted(self._manifest["files"])[part::parts]:
            check_file(self.path, name, self._manifest)
            if name.endswith(".safetensors"):
                self._open_file(name)

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor `key`: (stop - start,), fp32."""
        out = torch.empty(stop - start)
        for offset, length, name in self._manifest["tensors"][key]["pieces"]:
            low, high = max(start, offset), min(stop, offset + length)
            if low < high:
                piece = self._file(name).get_slice(key)[low - offset : high - offset]
                out[low - start : high - start] = piece
        return out

    def whole(self, key: str) -> Tensor:
        """The whole tensor `key` in its own shape, fp32."""
        shape = self.tensors[key]
        return self.read(key, 0, prod(shape)).view(shape)

    def has(self, group: str) -> bool:
        """Whether it holds tensors of `group`: model, exp_avg, ema, ..."""
        return any(key.startswith(group + "/") for key in self.tensors)

    def weights(self, which: str = "auto") -> dict[str, str]:
        """{name of a parameter: key of its values}.

        which: "last": the weights as trained; "ema": their moving average (frozen parameters have none, so
        as trained); "auto": "ema" if the checkpoint has averages, else "last". Raises UsageError for "ema"
        if there are none.
        """
        if which == "ema" and not self.has("ema"):
            raise UsageError(f"{self.path}: it has no averaged weights: its run had optim.ema=0")
        groups = ("model",) if which == "last" else ("model", "ema")
        found: dict[str, str] = {}
        for group in groups:
            found |= {key[len(group) + 1 :]: key for key in self.tensors if key.startswith(group + "/")}
        return found

    def model(self, which: str = "last") -> dict[str, Tensor]:
        """{name: whole parameter} of the model, fp32; `which` as in `weights`."""
        return {name: self.whole(key) for name, key in sorted(self.weights(which).items())}

    def load_into(self, ranges: Iterable[LocalRange], leave_out: str = "") -> None:
        """Copy the saved values into `ranges`, the training state of this process.

        leave_out: a group whose tensors are ignored on both sides. Raises UsageError that names the first
        tensor that only one side has, or whose shape differs.
        """
        ranges = [item for item in ranges if not leave_out or not item.key.startswith(leave_out + "/")]
        wanted = {item.key: item.shape for item in ranges}
        saved = [key for key in self.tensors if not leave_out or not key.startswith(leave_out + "/")]
        for key in [*wanted, *saved]:
            if key not in self.tensors:
                raise UsageError(
                    f"{self.path}: it lacks {key}, which this configuration has with shape "
                    f"{list(wanted[key])}{_ANOTHER_MODEL}",
                    shared=True,
                )
            if key not in wanted:
                raise UsageError(
                    f"{self.path}: it holds {key} with shape {list(self.tensors[key])}, which this "
                    f"configuration has not{_ANOTHER_MODEL}",
                    shared=True,
                )
            if self.tensors[key] != wanted[key]:
                raise UsageError(
                    f"{self.path}: {key} has shape {list(self.tensors[key])}, this configuration "
                    f"has {list(wanted[key])}{_ANOTHER_MODEL}",
                    shared=True,
                )
        for item in ranges:
            item.data.copy_(self.read(item.key, item.offset, item.offset + item.data.numel()))

    @cached_property
    def _contents(self) -> dict[str, dict[str, int]]:
        """{file: {key of a tensor: how many of its values the file holds}}."""
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
        """Open a safetensors file. DataError unless it holds exactly what the manifest says, 1-D and fp32."""
        wanted = self._contents.get(name, {})
        with reading(self.path, name):
            file = retrying(lambda: safe_open(regular_file(self.path / name), "pt"))
            names = set(file.keys())
            if unmatched := sorted(names ^ wanted.keys()):
                raise DataError(
                    f"{self.path}: {name} is damaged: only it or the manifest has '{unmatched[0]}'"
                )
            for key in names:
                piece = file.get_slice(key)
                if piece.get_dtype() != "F32" or piece.get_shape() != [wanted[key]]:
                    raise DataError(
                        f"{self.path}: {name} is damaged: '{key}' is {piece.get_dtype()} "
                        f"{piece.get_shape()} where the manifest says F32 [{wanted[key]}]"
                    )
        return file


def is_checkpoint(path: Path) -> bool:
    """Whether the folder `path` is a checkpoint, and not a run."""
    return os.path.isfile(path / "manifest.json") or bool(NAME.fullmatch(path.name) and os.path.isdir(path))


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint `path`, or the newest whole one of the run `path`, verified.

    Prints what is damaged if an older one is taken. Raises UsageError if `path` is neither, DataError if no
    checkpoint is whole.
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
            print_line(f"{damage}; using {candidate.name}")
        return found
    raise DataError(damage if single else f"{damage}; no older checkpoint of {path} is whole")


def newest(root: Path, world: World) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under `root` that is whole (or None), and what is wrong with each newer one.

    Called by all processes together, each of which checks a share of the files. Raises DataError if there
    are checkpoints and all are damaged.
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
