"""Writing checkpoints: copied at once, written in the background, published whole or not at all."""

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

from data_tools.errors import UserError

from .checkpoint import step_folder, temporary_folder
from .manifest import FORMAT, describe, digest_of
from .retention import Retention, delete, erase, flush, point, read_best
from .tensor_file import write_tensors

if TYPE_CHECKING:
    from ..engine.ranges import LocalRange
    from ..run.processes import World

SPARE = 2**20  # bytes of headers, state.json and manifest.json, generously

log = logging.getLogger("pretrain")


class Saver:
    """Writes checkpoints under `root`, in the background if asked. All methods are called by every process
    at the same step.

    on_error: what follows when a checkpoint cannot be written. "stop": UserError; "continue": a warning, and
    `error` holds it until the next one is written.
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
        self.best_score: float = world.gather(read_best(root).get("score", -math.inf))[0]
        self._best: dict[str, Any] = {}
        self._step: int | None = None
        self._publishing = False
        self._thread: threading.Thread | None = None
        self._thread_error: Exception | None = None
        self._host = torch.empty(0)
        self._allocation = threading.Thread()

    def reserve(self, ranges: Iterable[LocalRange]) -> None:
        """Allocate the host memory that saves of such ranges are copied to, beside the first steps.

        Its pages take longer to get than to fill; and a host that has too few of them is found out at once.
        """
        parts = [item.own_part[1] for item in ranges]
        size, cuda = sum(part.numel() for part in parts), any(part.is_cuda for part in parts)

        def allocate() -> None:
            self._host = torch.empty(size, dtype=torch.float32, pin_memory=cuda)
            self._host.zero_()  # only now its pages are there

        self._allocation = threading.Thread(target=allocate, name="reserve")
        self._allocation.start()

    def save(self, step: int, ranges: Iterable[LocalRange], state: dict[str, Any]) -> None:
        """Save `ranges` and `state` as checkpoint `step`. Returns when they are copied to host memory."""
        self.finish()
        self.error = self._thread_error = None
        parts = [(item, *item.own_part) for item in ranges]
        parts = [part for part in parts if part[2].numel()]
        needed = sum(self.world.gather(4 * sum(data.numel() for *_, data in parts)))
        temporary = temporary_folder(step_folder(self.root, step))
        try:
            self.world.rank0_first(lambda: _make_room(temporary, needed))
        except UserError as error:
            self._fail(temporary, error)
            return
        values = self._copy([data for *_, data in parts])
        pieces = {
            item.key: (offset, item.shape, value)
            for (item, offset, _), value in zip(parts, values, strict=True)
        }
        self._step = step
        self._start(lambda: self._write(temporary, pieces, state))
        if not self.background:
            self.finish()

    def mark_best(self, step: int, score: float) -> None:
        """Let the file `best` name checkpoint `step`, now or when it is published."""
        self.best_score = score
        final = step_folder(self.root, step)
        self._best = {"checkpoint": final.name, "step": step, "score": score}
        self.world.rank0_first(lambda: final.is_dir() and point(self.root / "best", json.dumps(self._best)))

    @property
    def pending(self) -> bool:
        return self._step is not None

    @property
    def written(self) -> bool:
        """Whether this process has nothing left to write, for now."""
        return self._thread is None or not self._thread.is_alive()

    def advance(self) -> None:
        """Go on with the pending checkpoint. Called when `written` holds on every process.

        When all have written their part, rank 0 begins to publish it; when it has, nothing is pending.
        """
        assert self._step is not None
        if self._thread:
            self._thread.join()
        failed = [error for error in self.world.gather(self._thread_error) if error is not None]
        step, self._thread = self._step, None
        if failed or self._publishing:
            self._step, self._publishing = None, False
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
        """Wait for the pending checkpoint, if there is one, until it is published."""
        while self.pending:
            self.advance()

    def _start(self, work: Callable[[], None]) -> None:
        """Do `work` in the background; what it raises is kept for `advance`."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._thread_error = error

        self._thread = threading.Thread(target=guarded, name="checkpoint")
        self._thread.start()

    def _copy(self, values: list[Tensor]) -> list[Tensor]:
        """`values` in host memory that is reused at every save, and pinned if they come from a GPU."""
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
        try:
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
        except OSError as error:
            size = sum(data.numel() * 4 for _, _, data in pieces.values())
            raise _unwritten(folder, f"the {size} bytes of rank {self.world.rank}", error) from None

    def _publish(self, step: int) -> None:
        final = step_folder(self.root, step)
        temporary = temporary_folder(final)
        try:
            _write_json(temporary / "manifest.json", _manifest(temporary, step, self.world.size))
            if self._best.get("step") == step:
                # Before the checkpoint is there: a stop in between is put right when the step is done again.
                point(self.root / "best", json.dumps(self._best))
            erase(final)
            os.rename(temporary, final)
            flush(self.root)
            point(self.root / "latest", final.name)
        except OSError as error:
            raise _unwritten(temporary, "the manifest", error) from None
        for path in self.retention.stale(self.root):
            delete(path)

    def _fail(self, temporary: Path, error: UserError) -> None:
        self.world.rank0_first(lambda: shutil.rmtree(temporary, ignore_errors=True))
        if self.on_error == "stop":
            raise error
        self.error = error
        log.warning("%s; going on (checkpoint.on_error=continue)", error)


def _make_room(temporary: Path, needed: int) -> None:
    """An empty folder to write `needed` bytes in. Raises UserError where the disk has not so many left."""
    try:
        erase(temporary)
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
    except OSError as error:
        raise _unwritten(temporary, f"{needed} bytes", error) from None
    if needed + SPARE > free:
        temporary.rmdir()
        raise UserError(
            f"{temporary.parent}: no room for {temporary.stem}: it needs {needed + SPARE} bytes, "
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
    files: dict[str, Any] = {"state.json": describe(folder / "state.json")}
    tensors: dict[str, Any] = {}
    for rank in range(size):
        sidecar = folder / f"rank-{rank:05d}.json"
        part = json.loads(sidecar.read_text())
        name = f"rank-{rank:05d}.safetensors"
        files[name], files[sidecar.name] = part["file"], describe(sidecar)
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
    file.write_text(json.dumps(content, indent=1, sort_keys=True))
    flush(file)
