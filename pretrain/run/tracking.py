"""Weights & Biases (W&B): a copy of metrics.jsonl for looking at. Offline it needs no network."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from ..config.schema import Config, TrackingConfig
from .files import read_object, read_rows, write_json
from .folder import RunFolder, log, make_and_try
from .restart import steps_done
from .wandb_environment import NOT_USED, tracking

if TYPE_CHECKING:
    import wandb

# Seconds. PATIENCE: for its server to answer at the start, and to take what is left at the end. END: for all
# that W&B has to do at the end, which may be to go offline first; HURRY: if the job was asked to stop.
# FLUSH: between two times that W&B writes what it has to its file.
PATIENCE = 15.0
END = 40.0
HURRY = 4.0
FLUSH = 1.0
EMPTY = 7  # bytes of a file of W&B without any row


class Tracker:
    """Gets every row of metrics.jsonl. This one does nothing; subclasses pass the rows on."""

    def log(self, row: dict[str, Any]) -> None:
        """Called with each row."""

    def finish(self, hurry: bool) -> None:
        """Called once, after the last row; hurry: the job was asked to stop."""


class WandbTracker(Tracker):
    """One W&B run for the run folder: each restart continues it under the same id.

    asked: see `tracking`. settings: the configuration, for W&B to show.

    W&B is called in a thread, so that nothing waits for it but `finish`, for a limited time. Its own counter
    of steps must not go back, not even from one start to the next, or its server drops rows: so it counts
    rows, and the step is a metric. wandb/rows.json is {"count": of rows, "from": the first step that may not
    be in W&B's files yet}; from there on the next start logs them again.
    """

    def __init__(
        self, config: Config, asked: TrackingConfig, folder: RunFolder, settings: dict[str, Any]
    ) -> None:
        self._folder, self._file = folder, folder.path / "wandb/rows.json"
        self._step_timeout = config.train.step_timeout
        self._mode, self._finished, self._rest = asked.wandb, False, "metrics.jsonl has everything"
        place = Path(os.environ.get("WANDB_DIR") or folder.path).resolve()
        self._run_settings: dict[str, Any] = {
            "project": asked.project,
            "name": os.environ.get("WANDB_NAME") or config.run.name,
            "id": folder.status().get("wandb_id") or secrets.token_hex(4),
            "dir": place if folder.write(place, lambda: make_and_try(place)) else folder.path,
            "config": settings,
        }
        known = read_object(self._file)
        count, late = known.get("count"), known.get("from")
        if not isinstance(count, int):  # of an earlier version, or not tracked until now
            began = self._file.parent.exists()
            count, late = (2 * steps_done(folder), None) if began else (0, 0)
        self._count = count
        self._rows: SimpleQueue[tuple[int, dict[str, Any]] | None] = SimpleQueue()
        self._unwritten: deque[int] = deque()  # steps of rows
        self._passed_on: deque[float] = deque()  # when the first of these rows went to W&B
        folder.write(self._file, lambda: self._file.parent.mkdir(exist_ok=True))
        for row in read_rows(folder.metrics, "step") if isinstance(late, int) else []:
            if row["step"] >= late:
                self._add(row)
        for name in (*NOT_USED, "WANDB_SERVICE"):
            os.environ.pop(name, None)
        os.environ["WANDB_RUN_ID"] = self._run_settings["id"]  # also in a sweep, which ignores our settings
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._file.parent / "cache"))  # there may be no home
        self._thread = Thread(target=self._pass_on, name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Have a row logged; does not wait for that."""
        self._add(row)
        self._note()

    def finish(self, hurry: bool) -> None:
        """Let W&B write, and if it is online upload, what it has."""
        self._rows.put(None)
        limit = min(HURRY if hurry else END, self._step_timeout / 2)
        self._thread.join(limit)
        if self._thread.is_alive():
            log.warning("W&B did not take everything within %.0f s; %s", limit, self._rest)
        elif self._finished:
            self._unwritten.clear()
        self._note()

    def _add(self, row: dict[str, Any]) -> None:
        self._unwritten.append(row["step"])
        self._rows.put((self._count, row))
        self._count += 1

    def _note(self) -> None:
        with suppress(IndexError):  # the thread may clear it meanwhile
            while self._passed_on[0] < self._passed_on[-1] - 2 * FLUSH:
                self._passed_on.popleft()
                self._unwritten.popleft()
        known = {"count": self._count, "from": self._unwritten[0] if self._unwritten else None}
        self._folder.write(self._file, lambda: write_json(self._file, known))

    def _pass_on(self) -> None:
        """In the thread: begin the W&B run, log the rows that come, end it."""
        try:
            run = self._begin()
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            for count, row in iter(self._rows.get, None):
                prefix = f"{row.get('split', 'train')}/"
                rest = {prefix + key: value for key, value in row.items() if key not in ("step", "split")}
                run.log({"step": row["step"], **rest}, step=max(count, run.step), commit=True)
                self._passed_on.append(time.monotonic())
            with suppress(TimeoutError):
                run.finish()
                _end_service()  # its file is only then sure to be written
                if Path(run.settings.sync_file).stat().st_size <= EMPTY:
                    raise OSError(f"it could not write to {run.settings.sync_dir}")
                self._rest = ""
            self._finished = True
            if self._rest:
                log.warning("W&B: its server did not take everything; %s", self._rest)
        except Exception as error:
            # Its own process may have ended: SLURM sends its signals to that too, and it ends at once.
            self._passed_on.clear()
            log.warning("W&B is gone: %s; %s", in_words(error), self._rest)

    def _begin(self) -> wandb.Run:
        import wandb

        for file in self._folder.path.glob("wandb/*run-*/run-*.wandb"):
            if file.stat().st_size <= EMPTY:  # of a start that was killed at once; `wandb sync` stops at it
                shutil.rmtree(file.parent, ignore_errors=True)
        patience, outage = min(PATIENCE, self._step_timeout / 4), ""
        settings = wandb.Settings(
            # W&B's metadata would hold the command line, which may contain passwords.
            x_disable_meta=True,
            save_code=False,
            console="off",
            finish_timeout=patience,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=FLUSH,
        )
        begin = partial(wandb.init, **self._run_settings, resume="allow", settings=settings)
        if self._mode == "online":
            settings.init_timeout = patience
            try:
                run = begin(mode="online")
            except Exception as error:
                outage = in_words(error)
                _end_service()  # it would go on trying, and keep the id
        if self._mode == "offline" or outage:
            settings.init_timeout = settings.finish_timeout = END  # nothing but this computer is asked
            run = begin(mode="offline")
        self._rest = f"later upload it by: wandb sync --include-online {run.settings.sync_dir}"
        if outage:
            log.warning("W&B: %s. The run goes on with W&B offline; %s", outage, self._rest)
        return run


def _end_service() -> None:
    """Wait until W&B's own process has ended."""
    import wandb

    with suppress(SystemExit):  # with its exit code
        wandb.teardown()


def in_words(error: Exception) -> str:
    """What W&B says of a failure; names a refused login."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "error 401" in text or "error 403" in text:
        text = f"its server refuses the login; run `wandb login` or set WANDB_API_KEY ({text})"
    return text


def start_tracking(config: Config, folder: RunFolder, settings: dict[str, Any], rank: int) -> Tracker:
    """The tracker that the configuration asks for on rank 0, one that logs nothing on the other ranks."""
    if rank:
        return Tracker()
    asked, notes = tracking(config)
    for note in notes:
        log.info("%s", note)
    return Tracker() if asked.wandb == "disabled" else WandbTracker(config, asked, folder, settings)
