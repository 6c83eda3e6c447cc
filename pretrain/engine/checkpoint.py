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

Nothing in it can run code. A folder gets its final name only when every file in it is complete and on
the disk, and `latest` moves after that, so a stop at any moment leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_tools.errors import DataError, UsageError

if TYPE_CHECKING:
    from .ranges import LocalRange
    from .world import World

FORMAT = "vit-pretrain-checkpoint-v1"
NAME = re.compile(r"step-(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def temporary_folder(final: Path) -> Path:
    """Where a checkpoint lies while it is written, or deleted."""
    return final.with_name(final.name + ".tmp")


def complete(root: Path) -> list[Path]:
    """The published checkpoints under `root`, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def remove_incomplete(root: Path) -> list[str]:
    """Delete what interrupted saves left under `root`; returns the names."""
    left = [path for path in root.glob("*.tmp")] if root.is_dir() else []
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name for path in left]


class Checkpoint:
    """A published checkpoint. Opening reads the manifest only; raises DataError if that is damaged.

    path: its folder. state: content of state.json. tensors: {key: whole shape}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = _read_manifest(path)
        self.tensors = {key: tuple(entry["shape"]) for key, entry in self._manifest["tensors"].items()}
        self._check("state.json")
        self.state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
        self.step: int = self.state["step"]
        self._open: dict[str, Any] = {}

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Check size and sha256 of every file, or of one of `parts` shares. Raises DataError."""
        for name in sorted(self._manifest["files"])[part::parts]:
            self._check(name)

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor `key`, fp32."""
        out = torch.empty(stop - start)
        missing = stop - start
        for offset, length, name in self._manifest["tensors"][key]["pieces"]:
            low, high = max(start, offset), min(stop, offset + length)
            if low < high:
                piece = self._file(name).get_slice(key)[low - offset : high - offset]
                out[low - start : high - start] = piece
                missing -= high - low
        if missing:
            raise DataError(f"{self.path}: {key} lacks {missing} of its values; use another checkpoint")
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

    def _check(self, name: str) -> None:
        wanted, file = self._manifest["files"][name], self.path / name
        if not file.is_file():
            raise DataError(f"{self.path}: {name} is missing")
        size = file.stat().st_size
        if size != wanted["size"]:
            raise DataError(
                f"{self.path}: {name} is damaged: {size} bytes where the manifest says {wanted['size']}"
            )
        if describe(file) != wanted:
            raise DataError(f"{self.path}: {name} is damaged: its sha256 is not the manifest's")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, "pt")
            except (OSError, SafetensorError) as error:
                raise DataError(f"{self.path}: {name} is damaged: {error}") from None
        return self._open[name]


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`, or the newest whole one of the run in folder `path`, verified.

    Prints what is damaged where an older one is taken. Raises UsageError if it is neither, DataError if
    nothing whole is left.
    """
    single = (path / "manifest.json").is_file()
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
    for path in complete(root):
        found, error = None, ""
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


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
        digest = manifest.pop("sha256")
    except FileNotFoundError:
        raise DataError(f"{path}: not a checkpoint: it has no manifest.json") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: manifest.json is damaged ({error})") from None
    if digest != digest_of(manifest):
        raise DataError(f"{path}: manifest.json is damaged: its sha256 does not fit its content")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: written in format {manifest.get('format')}; this version reads {FORMAT}")
    for name in manifest["files"]:
        if Path(name).name != name or name in ("", ".", ".."):
            raise DataError(f"{path}: manifest.json names a file outside its folder: {name!r}")
    named = {piece[2] for tensor in manifest["tensors"].values() for piece in tensor["pieces"]}
    if not named | {"state.json"} <= manifest["files"].keys():
        raise DataError(f"{path}: manifest.json has values in files that it does not list")
    return manifest


def digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}
