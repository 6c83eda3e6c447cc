"""Checkpoints: one folder of safetensors and JSON, the same under every engine and at every size.

    checkpoints/
        latest                      text: the name of the newest complete checkpoint
        step-00001000/
            rank-00000.safetensors  flat fp32 ranges, keyed KIND/PARAMETER; KIND: model, exp_avg, ...
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
import os
import re
import shutil
import threading
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_tools.errors import DataError, UsageError, UserError

from .ranges import LocalRange
from .world import World

FORMAT = "vit-pretrain-checkpoint-v1"
UMASK = os.umask(0)
os.umask(UMASK)
NAME = re.compile(r"step-(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


class Saver:
    """Writes checkpoints under `root`, in the background if asked, and keeps the newest `keep` of them.

    All methods are called by every process at the same step.
    """

    def __init__(self, root: Path, world: World, *, keep: int, background: bool) -> None:
        self.root, self.world, self.keep, self.background = root, world, keep, background
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, ranges: Iterable[LocalRange], state: dict[str, Any]) -> None:
        """Save `ranges` and `state` as checkpoint `step`. Returns when they are copied to host memory."""
        self.finish()
        pieces = {}
        for item in ranges:
            offset, data = item.own_part
            if data.numel():
                copy = torch.empty(data.shape, dtype=torch.float32)
                pieces[item.key] = (offset, item.shape, copy.copy_(data))
        self._step, self._error = step, None
        temporary = _temporary(step_folder(self.root, step))
        self.world.rank0_first(lambda: _fresh(temporary))
        self._thread = threading.Thread(
            target=self._write, args=(temporary, pieces, state), name="checkpoint"
        )
        self._thread.start()
        if not self.background:
            self.finish()

    @property
    def pending(self) -> bool:
        return self._step is not None

    @property
    def written(self) -> bool:
        """Whether this process has nothing left to write."""
        return self._thread is None or not self._thread.is_alive()

    def publish(self) -> None:
        """Give the written checkpoint its final name. Called when `written` holds on every process."""
        assert self._step is not None and self._thread is not None
        self._thread.join()
        failed = [error for error in self.world.gather(self._error) if error is not None]
        step, self._step, self._thread = self._step, None, None
        if failed:
            raise failed[0]
        self.world.rank0_first(lambda: _publish(self.root, step, self.world.size, self.keep))

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and publish it."""
        if self.pending:
            assert self._thread is not None
            self._thread.join()
            self.publish()

    def _write(self, folder: Path, pieces: dict[str, Any], state: dict[str, Any]) -> None:
        try:
            name = f"rank-{self.world.rank:05d}"
            file = folder / f"{name}.safetensors"
            write_tensors(file, {key: data for key, (_, _, data) in pieces.items()})
            entries = {
                key: {"offset": offset, "length": data.numel(), "shape": list(shape)}
                for key, (offset, shape, data) in pieces.items()
            }
            _write_json(folder / f"{name}.json", {"file": _describe(file), "ranges": entries})
            if self.world.rank == 0:
                _write_json(folder / "state.json", state)
        except OSError as error:
            need = sum(data.numel() * 4 for _, _, data in pieces.values())
            self._error = UserError(
                f"{folder}: rank {self.world.rank} could not write its {need} bytes: "
                f"{error.strerror or error}; the checkpoints before it are whole",
                shared=True,
            )
        except Exception as error:
            self._error = error


def write_tensors(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file down to the disk, as readable for others as any new file."""
    save_file(tensors, file, metadata=metadata)
    os.chmod(file, 0o666 & ~UMASK)  # safetensors would keep it to its owner
    _flush(file)


def _publish(root: Path, step: int, size: int, keep: int) -> None:
    final = step_folder(root, step)
    temporary = _temporary(final)
    files: dict[str, Any] = {"state.json": _describe(temporary / "state.json")}
    tensors: dict[str, Any] = {}
    for rank in range(size):
        sidecar = temporary / f"rank-{rank:05d}.json"
        part = json.loads(sidecar.read_text())
        name = f"rank-{rank:05d}.safetensors"
        files[name], files[sidecar.name] = part["file"], _describe(sidecar)
        for key, entry in part["ranges"].items():
            tensor = tensors.setdefault(key, {"shape": entry["shape"], "pieces": []})
            tensor["pieces"].append([entry["offset"], entry["length"], name])
    for key, tensor in tensors.items():
        held = sum(length for _, length, _ in tensor["pieces"])
        if held != prod(tensor["shape"]):
            raise RuntimeError(f"{temporary}: {held} values were written for {key} {tensor['shape']}")
    body = {"format": FORMAT, "step": step, "files": files, "tensors": tensors}
    _write_json(temporary / "manifest.json", {"sha256": _digest(body), **body})
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    _flush(root)
    pointer = root / "latest.tmp"
    pointer.write_text(final.name + "\n")
    _flush(pointer)
    os.replace(pointer, root / "latest")
    _flush(root)
    for old in complete(root)[keep:] if keep else []:
        doomed = _temporary(old)
        os.rename(old, doomed)
        shutil.rmtree(doomed)


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

    def model(self) -> dict[str, Tensor]:
        """All parameters of the model, whole, by name."""
        return {key[6:]: self.whole(key) for key in sorted(self.tensors) if key.startswith("model/")}

    def load_into(self, ranges: Iterable[LocalRange]) -> None:
        """Copy the saved values into the live ranges.

        Raises UsageError naming the first tensor that only one side has, or whose shape differs.
        """
        ranges = list(ranges)
        wanted = {item.key: item.shape for item in ranges}
        for key in [*wanted, *self.tensors]:
            if key not in self.tensors:
                raise UsageError(f"{self.path}: it lacks {key}, which this configuration has", shared=True)
            if key not in wanted:
                raise UsageError(
                    f"{self.path}: it holds {key}, which this configuration has not", shared=True
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
        if _describe(file) != wanted:
            raise DataError(f"{self.path}: {name} is damaged: its sha256 is not the manifest's")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.path / name, "pt")
            except (OSError, SafetensorError) as error:
                raise DataError(f"{self.path}: {name} is damaged: {error}") from None
        return self._open[name]


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
    if digest != _digest(manifest):
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


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def _temporary(folder: Path) -> Path:
    return folder.with_name(folder.name + ".tmp")


def _fresh(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True))
    _flush(file)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
