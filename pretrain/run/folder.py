"""The run folder: the files of a run. All but the checkpoints are written through `RunFolder`.

Without these files a run can go on, so what fails here is tried again and told once (see `Secondary`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from data_tools.errors import LineFormatter, UsageError, UserError, is_transient, print_line, retrying

from .files import Secondary, keep_rows, read_object, write_json
from .lock import LOCK_PATIENCE, take_lock
from .rendezvous import slurm_job

NUMBERS = ("time", "step", "steps", "step_time", "seconds_left", "images_per_s", "loss")  # in status.json
STATUS_LOCK_PATIENCE = 1.0  # seconds

SAMPLE = ("split", "shard", "key")  # what a row of bad_samples.jsonl has
GOING_ON = ("starting", "running", "stopping")  # states of a job that has not ended

log = logging.getLogger("pretrain")


class RunFolder:
    """The folder `path` of a run, as process `rank` uses it.

    metrics.jsonl has one row for each logged step and each evaluation, in order, each step once. status.json
    is the state of the run: {"state": starting | running | stopping | done | stopped | failed, "exit_code",
    "step", "step_time", "time", ...}. step_time is when the last step ended and time when the file was
    written, in seconds since 1970.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.rank = path, rank
        self.run_id = ""  # known to rank 0 once the run has begun
        self.metrics = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.checkpoints = path / "checkpoints"
        self.bad_samples = path / "bad_samples.jsonl"
        self.nonfinite = path / "nonfinite.jsonl"
        self.classes = path / "classes.json"
        self.report = path / "report.html"
        self.trace = path / "trace"
        self.refused = path / "slurm/refused.json"
        self._files = Secondary()

    def create(self) -> None:
        """Make the folders that a run writes to. Raises UsageError, or UserError if the disk is full."""
        for folder in (self.path, self.path / "logs", self.checkpoints):
            try:
                retrying(partial(make_and_try, folder))
            except OSError as error:
                raise _unwritable(folder, error) from None

    def lock(self, patience: float = LOCK_PATIENCE) -> None:
        """Keep other jobs out of this folder as long as this process runs (see `take_lock`)."""
        try:
            self._lock = take_lock(self.path, patience)
        except OSError as error:
            raise _unwritable(self.path / ".lock", error) from None

    def log_to_file_and_console(self) -> None:
        """Let `log` write to logs/rank-N.log, and on rank 0 also to the console."""
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers.clear()
        if self.rank == 0:
            log.addHandler(_Printer())
        path = self.path / "logs" / f"rank-{self.rank}.log"

        def open_file() -> None:
            file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
            file.setFormatter(LineFormatter("%(asctime)s %(message)s"))
            log.addHandler(file)

        self._files.write(path, open_file)

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none, or none that a run wrote.

        What should be a number and is none is left out.
        """
        found = read_object(self.status_file)
        kept = {key: value for key, value in found.items() if key not in NUMBERS or _is_number(value)}
        return kept if isinstance(kept.get("state"), str) and "time" in kept else {}

    def set_status(self, state: str, *, anew: bool = False, **facts: Any) -> None:
        """Update status.json; facts that are not given stay as they are.

        starting, running and stopping never overwrite done, stopped or failed; only with `anew`, at the start
        of a job, they do. running does not overwrite stopping.
        """
        going_on = state in GOING_ON
        with self._status_lock():
            before = self.status()
            if going_on and not anew:
                if before.get("state", state) not in GOING_ON:
                    return
                state = "stopping" if before.get("state") == "stopping" else state
            if state != "failed":
                for fact in ("exit_code", "reason", "rank", "traceback", *(["signal"] if anew else [])):
                    before.pop(fact, None)
            now = {"state": state, "time": time.time(), "host": socket.gethostname()}
            self.replace_status(before | self._newest_checkpoint() | now | facts)

    def _newest_checkpoint(self) -> dict[str, str]:
        with suppress(OSError):
            return {"checkpoint": (self.checkpoints / "latest").read_text(encoding="utf-8").strip()}
        return {}

    def set_failed(self, **facts: Any) -> bool:
        """Write a failure to status.json; False, without writing, if another process has written one."""
        with self._status_lock():
            before = self.status()
            if before.get("state") == "failed":
                return False
            now = {"state": "failed", "time": time.time(), "host": socket.gethostname()}
            self.replace_status(before | now | facts)
        return True

    def replace_status(self, status: dict[str, Any]) -> None:
        """Replace status.json; on a full disk overwrite it in place (a reader may then see a part of it)."""

        def write() -> None:
            try:
                write_json(self.status_file, status)
            except OSError:
                brief = {key: value for key, value in status.items() if key != "traceback"}
                with suppress(OSError), self.status_file.open("r+", encoding="utf-8") as stream:
                    stream.write(json.dumps(brief) + "\n")
                    stream.truncate()
                    return
                raise

        self._files.write(self.status_file, write)

    def refuse(self, exit_code: int, reason: str) -> None:
        """Tell the batch script why this start of a SLURM job failed, without changing status.json."""
        if slurm_job() and self.refused.parent.is_dir():
            facts = {"rank": self.rank, "host": socket.gethostname(), "time": time.time()}
            content = {"state": "failed", "exit_code": exit_code, "reason": reason, **facts, **slurm_job()}
            self._files.write(self.refused, lambda: write_json(self.refused, content))

    def refusal(self) -> dict[str, Any]:
        """What `refuse` wrote last; empty if it was never called."""
        return read_object(self.refused)

    @contextmanager
    def _status_lock(self) -> Iterator[None]:
        """Hold the lock of status.json, if it can be had within a second.

        Without it two writers may overwrite each other; the later one stays.
        """
        with ExitStack() as stack:
            with suppress(OSError):
                stream = stack.enter_context((self.path / ".status.lock").open("a", encoding="utf-8"))
                limit = time.monotonic() + STATUS_LOCK_PATIENCE
                while time.monotonic() < limit:
                    try:
                        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        time.sleep(0.02)
            yield

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        self._files.append(self.metrics, [row])

    def evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has an evaluation of `step`."""
        rows = self._files.rows(self.metrics, "step", "split")
        return any(row["split"] == "val" and row["step"] == step for row in rows)

    def drop_after(self, step: int) -> None:
        """Delete what was written after `step`, as these steps will be done again. Raises UserError."""
        files: dict[Path, tuple[str, ...]] = {
            self.metrics: ("step",),
            self.nonfinite: ("step",),
            self.bad_samples: SAMPLE,
            **dict.fromkeys(retrying(lambda: list(self.trace.glob("*.jsonl"))), ("step",)),
        }
        for file, keys in files.items():
            try:
                retrying(partial(keep_rows, file, lambda row: row.get("step", 0) <= step, *keys))
            except OSError as error:
                raise _unwritable(file, error) from None

    def add_nonfinite(self, row: dict[str, Any]) -> None:
        """Append a row to nonfinite.jsonl."""
        self._files.append(self.nonfinite, [row])

    def add_bad_sample(self, row: dict[str, Any]) -> bool:
        """Append a row to bad_samples.jsonl unless the sample is in there; returns whether it was new."""
        same = {key: row[key] for key in SAMPLE}
        if any(same.items() <= old.items() for old in self._files.rows(self.bad_samples, *SAMPLE)):
            return False
        self._files.append(self.bad_samples, [row])
        return True

    def add_trace(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the file of this process in trace/."""
        self._files.append(self.trace / f"rank-{self.rank}.jsonl", rows)

    def write(self, file: Path, write: Callable[[], Any]) -> bool:
        """Write a file of the run by calling `write`; returns whether that was possible."""
        return self._files.write(file, write)

    def flush(self) -> None:
        """Try once more to write rows that could not be written."""
        self._files.flush()


def make_and_try(folder: Path) -> None:
    """Make a folder, and a file in it that is gone at once. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15


def _unwritable(path: Path, error: OSError) -> UserError:
    text, todo = error.strerror or str(error), "check run.dir and run.name, and who may write there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        todo = "make room"
    elif is_transient(error):
        todo = "look after the disk or the network that it is on, then start again"
    else:
        return UsageError(f"{path}: it cannot be written: {text}: {todo}", shared=True)
    return UserError(f"{path}: it cannot be written: {text}: {todo}", shared=True)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: if the disk is full, files that matter more than the log raise an error."""


class _Printer(logging.Handler):
    """Logs by print_line(), so that lines appear above the progress bar, which redirects stdout.

    It leaves out errors: the process that fails first prints its error on stderr.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        print_line(record.getMessage())
