"""The run folder: what a run leaves on disk, and the one place that writes it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from data_tools.errors import UsageError, UserError

from .rendezvous import life

LOCK_PATIENCE = 30.0

GOING_ON = ("starting", "running", "stopping")

log = logging.getLogger("pretrain")


class RunFolder:
    """The folder `path` of a run.

    metrics.jsonl holds a row per logged step and per evaluation, in order, each step once. status.json tells
    how the run stands: {"state": starting | running | stopping | done | stopped | failed, "exit_code",
    "step", "step_time", "time", ...}; the times are seconds since 1970, of the last step and the last word.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path, self.rank = path, rank
        self.metrics = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.checkpoints = path / "checkpoints"
        self.bad_samples = path / "bad_samples.jsonl"
        self.nonfinite = path / "nonfinite.jsonl"
        self.classes = path / "classes.json"
        self.report = path / "report.html"
        self.trace = path / "trace"
        self.refused = path / "slurm/refused.json"

    def create(self) -> None:
        """Make the folders that a run writes to. Raises UsageError, or UserError for a full disk."""
        for folder in (self.path, self.path / "logs", self.checkpoints):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                raise _unwritable(folder, error) from None

    def lock(self, patience: float = LOCK_PATIENCE) -> None:
        """Keep other jobs out of this folder while this process lives.

        Waits `patience` seconds for the remains of a job that was killed; then raises UsageError, or for an
        earlier life of this very SLURM job, which will not stay for ever, UserError.
        """
        try:
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise _unwritable(self.path / ".lock", error) from None
        limit = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._lock.seek(0)
                owner = self._lock.read().strip()
                if not told:
                    print(f"{self.path} is in use by {owner}: waiting up to {patience:.0f} s", flush=True)
                    told = True
                _end_earlier_life(owner)
                if time.monotonic() > limit:
                    if _is_earlier_life(owner):
                        text = f"{self.path} is still in use by {owner}: end that process"
                        raise UserError(text, shared=True) from None
                    text = f"{self.path} is in use by {owner}: end that job first, or set another run.name"
                    raise UsageError(text, shared=True) from None
                time.sleep(0.2)
            except OSError:
                log.warning("%s: this file system has no locks; do not start two jobs in it", self.path)
                break
        self._lock.truncate(0)
        of_job = " of SLURM job {job}, restart {restart}".format(**life()) if life() else ""
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}{of_job}\n")
        self._lock.flush()

    def log_to_file_and_console(self) -> None:
        """Log to logs/rank-N.log; rank 0 also to the console."""
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers.clear()
        file = _LogFile(self.path / "logs" / f"rank-{self.rank}.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(file)
        if self.rank == 0:
            log.addHandler(_Printer())

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty where there is none."""
        return _read_object(self.status_file)

    def set_status(self, state: str, *, anew: bool = False, **facts: Any) -> None:
        """Update status.json; facts that are not named stay.

        What a process says while it goes on does not cover how the job ended, unless the job starts anew.
        """
        going_on = state in GOING_ON
        with self._status_lock():
            before = self.status()
            if going_on and not anew:
                if before.get("state") not in GOING_ON:
                    return
                state = "stopping" if before["state"] == "stopping" else state
            status = before | {"state": state, "time": time.time(), "host": socket.gethostname()} | facts
            if going_on:
                for fact in ("exit_code", "reason", "rank", "traceback", *(["signal"] if anew else [])):
                    status.pop(fact, None)
            self._write_status(status)

    def set_failed(self, **facts: Any) -> bool:
        """Update status.json with a failure; False where another process was first, whose word stays."""
        with self._status_lock():
            before = self.status()
            if before.get("state") == "failed":
                return False
            now = {"state": "failed", "time": time.time(), "host": socket.gethostname()}
            self._write_status(before | now | facts)
        return True

    def _write_status(self, status: dict[str, Any]) -> None:
        """On a full disk over the old one, which needs no room; a reader may then see a part."""
        try:
            write_json(self.status_file, status)
        except OSError:
            with suppress(OSError), self.status_file.open("r+") as stream:
                brief = {key: value for key, value in status.items() if key != "traceback"}
                stream.write(json.dumps(brief) + "\n")
                stream.truncate()

    def refuse(self, exit_code: int, reason: str) -> None:
        """Leave word for the batch script, where status.json is not to speak of this life of a SLURM job."""
        if life() and self.refused.parent.is_dir():
            facts = {"rank": self.rank, "host": socket.gethostname(), "time": time.time()}
            write_json(
                self.refused, {"state": "failed", "exit_code": exit_code, "reason": reason, **facts, **life()}
            )

    def refusal(self) -> dict[str, Any]:
        """What `refuse` left; empty without it."""
        return _read_object(self.refused)

    @contextmanager
    def _status_lock(self) -> Iterator[None]:
        with (self.path / ".status.lock").open("a") as stream:
            with suppress(OSError):  # on a file system without locks the last word wins
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def wandb_id(self) -> str:
        """The W&B id of this run: made at its first start, the same ever after."""
        return self.status().get("wandb_id") or secrets.token_hex(4)

    def add_metrics(self, row: dict[str, Any]) -> None:
        _append(self.metrics, [row])

    def drop_after(self, step: int) -> None:
        """Drop the metrics and trace rows of steps after `step`: they are about to be done again."""
        for file in [self.metrics, *self.trace.glob("*.jsonl")]:
            if file.exists():
                kept = [row for row in read_rows(file) if row["step"] <= step]
                replace(file, "".join(json.dumps(row) + "\n" for row in kept))

    def add_nonfinite(self, row: dict[str, Any]) -> None:
        """Note a step that was left out, once in the life of the run."""
        if all(old["step"] != row["step"] for old in read_rows(self.nonfinite)):
            _append(self.nonfinite, [row])

    def add_bad_sample(self, row: dict[str, Any]) -> bool:
        """Note an unreadable sample unless it is noted already; returns whether it was new."""
        same = {key: row[key] for key in ("split", "shard", "key")}
        if any(same.items() <= old.items() for old in read_rows(self.bad_samples)):
            return False
        _append(self.bad_samples, [row])
        return True

    def add_trace(self, rows: list[dict[str, Any]]) -> None:
        self.trace.mkdir(exist_ok=True)
        _append(self.trace / f"rank-{self.rank}.jsonl", rows)


def _unwritable(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "make room" if full else "check run.dir and run.name, and who may write there"
    kind = UserError if full else UsageError
    return kind(f"{path}: it cannot be written: {error.strerror}: {todo}", shared=True)


def _is_earlier_life(owner: str) -> bool:
    """Whether it is one of this very SLURM job."""
    match = re.search(r" of SLURM job (\S+), restart (\d+)$", owner)
    return bool(match and life()) and match[1] == life()["job"] and int(match[2]) < life()["restart"]


def _end_earlier_life(owner: str) -> None:
    """Kill the process that holds the lock if it is left over from an earlier life, and on this node."""
    match = re.match(r"process (\d+) on (\S+)", owner)
    if match and match[2] == socket.gethostname() and _is_earlier_life(owner):
        with suppress(OSError):  # it is gone
            environment = Path(f"/proc/{match[1]}/environ").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={life()['job']}".encode() in environment:
                os.kill(int(match[1]), signal.SIGKILL)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: a full disk is told of by what must be written."""


class _Printer(logging.Handler):
    """Prints, so that whoever has taken over stdout, as a progress bar does, is passed through.

    Not errors: the process that ends of one says it on stderr, unless another has said why before.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file. A last line that a crash cut short is passed over."""
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Add `rows` to a JSON-lines file. Raises UserError where they cannot be written."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        with file.open("a") as stream:
            stream.write(text)
    except OSError as error:
        raise UserError(
            f"{file}: {len(text)} bytes could not be written: {error.strerror or error}"
        ) from None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}


def write_json(file: Path, content: Any) -> None:
    replace(file, json.dumps(content, indent=1) + "\n")


def replace(file: Path, text: str) -> None:
    """Write `file` so that a reader sees the old content or the new, never a part."""
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
