"""Writing checkpoints: the training state is copied at once, and written and published in the background."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_tools.errors import UserError, retrying

from .checkpoint import step_folder, temporary_folder
from .disk import erase, erase_or_warn, flush_to_disk
from .manifest import FORMAT, digest_of, size_and_sha256
from .pointers import announce_best, best_text, point, read_best, settle_best
from .retention import Retention, delete_checkpoint
from .tensor_file import write_tensors

if TYPE_CHECKING:
    from ..engine.ranges import LocalRange
    from ..run.processes import World

SPARE = 2**20  # bytes for each process: more than headers, rank-N.json and manifest.json need

log = logging.getLogger("pretrain")


class Saver:
    """Writes checkpoints under `root`. Every process must call its methods, at the same step.

    background: whether `save` returns before the files are written. retention: which checkpoints stay; None:
    all. on_error: what happens if a checkpoint cannot be written. "stop": UserError is raised; "continue": a
    warning, and `error` holds the UserError until a later checkpoint is saved.
    """

    def __init__(
        self,
        root: Path,
        world: World,
        *,
        background: bool,
        retention: Retention | None = None,
        on_error: str = "stop",
    ) -> None:
        self.root, self.world, self.background = root, world, background
        self.retention, self.on_error = retention or Retention(), on_error
        self.error: UserError | None = None
        world.on_rank0(lambda: settle_best(root))
        self._best: float = world.gather(read_best(root).get("score", -math.inf))[0]
        self._score: float | None = None  # of the pending checkpoint, if it is better than all before
        self._step: int | None = None
        self._publishing = False
        self._thread: threading.Thread | None = None
        self._thread_error: Exception | None = None
        self._host = torch.empty(0)
        self._allocation = threading.Thread()

    def reserve(self, ranges: Iterable[LocalRange]) -> None:
        """Begin to allocate, in a thread, the host memory into which `save` copies the ranges.

        Getting memory takes longer than filling it. And if the host has too little, the run fails at its
        start and not at its first checkpoint.
        """
        parts = [item.own_part[1] for item in ranges]
        size, cuda = sum(part.numel() for part in parts), any(part.is_cuda for part in parts)

        def allocate() -> None:
            self._host = torch.empty(size, dtype=torch.float32, pin_memory=cuda)
            self._host.zero_()  # only writing makes the system provide the memory

        self._allocation = threading.Thread(target=allocate, name="reserve")
        self._allocation.start()

    @property
    def best_score(self) -> float:
        """Of the checkpoint that the file `best` names, or will when it is published; -inf without one."""
        return self._best if self._score is None else self._score

    def save(
        self, step: int, ranges: Iterable[LocalRange], state: dict[str, Any], score: float | None = None
    ) -> None:
        """Save `ranges`, and `state` as state.json, as the checkpoint of step `step`.

        With a score, the file `best` names it once it is published. Waits for the last save. Returns when the
        ranges are copied to host memory; without `background`, when the checkpoint is published. Raises
        UserError as `on_error` says.
        """
        self.finish()
        self.error = self._thread_error = None
        parts = [(item, *item.own_part) for item in ranges]
        parts = [part for part in parts if part[2].numel()]
        needed = sum(self.world.gather(4 * sum(data.numel() for *_, data in parts) + SPARE))
        temporary = temporary_folder(step_folder(self.root, step))
        try:
            self.world.on_rank0(lambda: _make_room(temporary, needed))
        except UserError as error:
            self._fail(temporary, error)
            return
        values = self._copy([data for *_, data in parts])
        pieces = {
            item.key: (offset, item.shape, value)
            for (item, offset, _), value in zip(parts, values, strict=True)
        }
        self._step, self._score = step, score
        self._start(lambda: self._write(temporary, pieces, state))
        if not self.background:
            self.finish()

    def mark_best(self, step: int, score: float) -> None:
        """Let the file `best` name the checkpoint of step `step`, if it is published."""
        final = step_folder(self.root, step)
        if self.world.gather(final.is_dir())[0]:
            self.world.on_rank0(lambda: point(self.root / "best", best_text(final.name, step, score)))
            self._best = score

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written or published."""
        return self._step is not None

    @property
    def written(self) -> bool:
        """Whether this process's thread is done with its stage (see `advance`)."""
        return self._thread is None or not self._thread.is_alive()

    def advance(self) -> None:
        """Begin the next stage of the pending checkpoint; called when `written` holds on every process.

        When all processes have written their parts, rank 0 begins to publish the checkpoint. When it is
        published, nothing is pending any more. Raises UserError as `on_error` says.
        """
        assert self._step is not None
        if self._thread:
            self._thread.join()
        failed = self.world.gather_errors(self._thread_error)
        step, self._thread = self._step, None
        if failed or self._publishing:
            if self._publishing and not failed and self._score is not None:
                self._best = self._score
            self._step, self._score, self._publishing = None, None, False
        else:
            self._publishing = True
            if self.world.rank == 0:
                self._start(lambda: self._publish(step))
        try:
            if failed:
                raise failed[0]
        except UserError as error:
            self._fail(temporary_folder(step_folder(self.root, step)), error)

    def finish(self) -> None:
        """Wait until the pending checkpoint, if any, is published. Raises UserError as `on_error` says."""
        while self.pending:
            self.advance()

    def _start(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread; `advance` handles what it raises."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._thread_error = error

        self._thread = threading.Thread(target=guarded, name="checkpoint")
        self._thread.start()

    def _copy(self, values: list[Tensor]) -> list[Tensor]:
        """Copy `values` into host memory that each save uses again; pinned if they are on a GPU."""
        sizes = [value.numel() for value in values]
        cuda = any(value.is_cuda for value in values)
        if self._allocation.ident:
            self._allocation.join()
        if self._host.numel() != sum(sizes):
            self._host = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=cuda)
        copies = list(self._host.split(sizes))
        for copy, value in zip(copies, values, strict=True):
            copy.copy_(value, non_blocking=cuda)
        if cuda:
            torch.cuda.current_stream().synchronize()
        return copies

    def _write(self, folder: Path, pieces: dict[str, Any], state: dict[str, Any]) -> None:
        def write() -> None:
            name = f"rank-{self.world.rank:05d}"
            file = folder / f"{name}.safetensors"
            shapes = {key: tuple(data.shape) for key, (_, _, data) in pieces.items()}
            written = write_tensors(file, shapes, lambda key: pieces[key][2])
            entries = {
                key: {"offset": offset, "length": data.numel(), "shape": list(shape)}
                for key, (offset, shape, data) in pieces.items()
            }
            _write_json(folder / f"{name}.json", {"file": written, "ranges": entries})
            if self.world.rank == 0:
                _write_json(folder / "state.json", state)

        try:
            retrying(write)
        except OSError as error:
            size = sum(data.numel() * 4 for _, _, data in pieces.values())
            raise _unwritten(folder, f"the {size} bytes of rank {self.world.rank}", error) from None

    def _publish(self, step: int) -> None:
        final = step_folder(self.root, step)
        temporary = temporary_folder(final)

        def publish() -> None:
            if temporary.exists():  # otherwise an attempt succeeded and was told to have failed
                _write_json(temporary / "manifest.json", _manifest(temporary, step, self.world.size))
                erase(final)
                os.rename(temporary, final)
            flush_to_disk(self.root)

        try:
            if self._score is not None:  # first, so that a job that is killed in between leaves both
                announce_best(self.root, best_text(final.name, step, self._score))
            retrying(publish)
        except OSError as error:
            raise _unwritten(temporary, "the checkpoint", error) from None
        point(self.root / "latest", final.name)
        settle_best(self.root)
        try:
            stale = self.retention.stale(self.root)
        except UserError as error:
            log.warning("%s; no checkpoint is deleted", error)
            return
        for path in stale:
            delete_checkpoint(path)

    def _fail(self, temporary: Path, error: UserError) -> None:
        self.world.on_rank0(lambda: erase_or_warn(temporary))
        if self.on_error == "stop":
            raise error
        self.error = error
        log.warning("%s; going on (checkpoint.on_error=continue)", error)


def _make_room(temporary: Path, needed: int) -> None:
    """Make the empty folder `temporary`. Raises UserError if the disk has less than `needed` bytes left."""
    try:
        erase(temporary)
        retrying(lambda: temporary.mkdir(parents=True, exist_ok=True))
    except OSError as error:
        raise _unwritten(temporary, f"{needed} bytes", error) from None
    try:
        free = retrying(lambda: shutil.disk_usage(temporary)).free
    except OSError:  # a disk that does not say how much room it has
        return
    if needed > free:
        temporary.rmdir()
        raise UserError(
            f"{temporary.parent}: no room for {temporary.stem}: it needs {needed} bytes, "
            f"{free} are free; the checkpoints before it are whole",
            shared=True,
        )


def _unwritten(folder: Path, what: str, error: OSError) -> UserError:
    return UserError(
        f"{folder}: {what} could not be written: {error.strerror or error}; "
        f"the checkpoints before it are whole",
        shared=True,
    )


def _manifest(folder: Path, step: int, size: int) -> dict[str, Any]:
    files: dict[str, Any] = {"state.json": size_and_sha256(folder / "state.json")}
    tensors: dict[str, Any] = {}
    for rank in range(size):
        sidecar = folder / f"rank-{rank:05d}.json"
        part = json.loads(sidecar.read_bytes())
        name = f"rank-{rank:05d}.safetensors"
        files[name], files[sidecar.name] = part["file"], size_and_sha256(sidecar)
        for key, entry in part["ranges"].items():
            tensor = tensors.setdefault(key, {"shape": entry["shape"], "pieces": []})
            tensor["pieces"].append([entry["offset"], entry["length"], name])
    for key, tensor in tensors.items():
        held = sum(length for _, length, _ in tensor["pieces"])
        if held != prod(tensor["shape"]):
            raise RuntimeError(f"{folder}: {held} values were written for {key} {tensor['shape']}")
    body = {"format": FORMAT, "step": step, "files": files, "tensors": tensors}
    return {"sha256": digest_of(body), **body}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    flush_to_disk(file)
