"""The run folder: the files of a run. All but the checkpoints are written through `RunFolder`."""

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

from .rendezvous import slurm_job

LOCK_PATIENCE = 30.0  # seconds

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
        """Make the folders that a run writes to. Raises UsageError, or UserError if the disk is full."""
        for folder in (self.path, self.path / "logs", self.checkpoints):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                raise _unwritable(folder, error) from None

    def lock(self, patience: float = LOCK_PATIENCE) -> None:
        """Keep other jobs out of this folder as long as this process runs.

        Waits `patience` seconds, because processes of a killed job may still be ending. Then raises
        UsageError; or UserError (the job may be requeued) if the folder is in use by processes of this SLURM
        job from before it was restarted.
        """
        try:
            self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
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
                _kill_if_from_before_restart(owner)
                if time.monotonic() > limit:
                    if _is_from_before_restart(owner):
                        text = f"{self.path} is still in use by {owner}: end that process"
                        raise UserError(text, shared=True) from None
                    text = f"{self.path} is in use by {owner}: end that job first, or set another run.name"
                    raise UsageError(text, shared=True) from None
                time.sleep(0.2)
            except OSError:
                log.warning("%s: this file system has no locks; do not start two jobs in it", self.path)
                break
        self._lock.truncate(0)
        of_job = " of SLURM job {job}, restart {restart}".format(**slurm_job()) if slurm_job() else ""
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}{of_job}\n")
        self._lock.flush()

    def log_to_file_and_console(self) -> None:
        """Let `log` write to logs/rank-N.log, and on rank 0 also to the console."""
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers.clear()
        path = self.path / "logs" / f"rank-{self.rank}.log"
        file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(file)
        if self.rank == 0:
            log.addHandler(_Printer())

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none."""
        return _read_object(self.status_file)

    def set_status(self, state: str, *, anew: bool = False, **facts: Any) -> None:
        """Update status.json; facts that are not given stay as they are.

        starting, running and stopping never overwrite done, stopped or failed; only with `anew`, at the start
        of a job, they do. running does not overwrite stopping.
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
        """Write a failure to status.json; False, without writing, if another process has written one."""
        with self._status_lock():
            before = self.status()
            if before.get("state") == "failed":
                return False
            now = {"state": "failed", "time": time.time(), "host": socket.gethostname()}
            self._write_status(before | now | facts)
        return True

    def _write_status(self, status: dict[str, Any]) -> None:
        """Replace status.json; on a full disk overwrite it in place (a reader may then see a part of it)."""
        try:
            write_json(self.status_file, status)
        except OSError:
            with suppress(OSError), self.status_file.open("r+", encoding="utf-8") as stream:
                brief = {key: value for key, value in status.items() if key != "traceback"}
                stream.write(json.dumps(brief) + "\n")
                stream.truncate()

    def refuse(self, exit_code: int, reason: str) -> None:
        """Tell the batch script why this start of a SLURM job failed, without changing status.json."""
        if slurm_job() and self.refused.parent.is_dir():
            facts = {"rank": self.rank, "host": socket.gethostname(), "time": time.time()}
            write_json(
                self.refused,
                {"state": "failed", "exit_code": exit_code, "reason": reason, **facts, **slurm_job()},
            )

    def refusal(self) -> dict[str, Any]:
        """What `refuse` wrote last; empty if it was never called."""
        return _read_object(self.refused)

    @contextmanager
    def _status_lock(self) -> Iterator[None]:
        with (self.path / ".status.lock").open("a", encoding="utf-8") as stream:
            # Without file locks two writers may overwrite each other; the later one stays.
            with suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def wandb_id(self) -> str:
        """The W&B id of this run: random at its first start, later the one in status.json."""
        return self.status().get("wandb_id") or secrets.token_hex(4)

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl. Raises UserError if that fails, as the other add_ methods do."""
        _append(self.metrics, [row])

    def drop_after(self, step: int) -> None:
        """Delete the rows of steps after `step` from metrics.jsonl and trace/, as they will be done again."""
        for file in [self.metrics, *self.trace.glob("*.jsonl")]:
            if file.exists():
                kept = [row for row in read_rows(file) if row["step"] <= step]
                replace_file(file, "".join(json.dumps(row) + "\n" for row in kept))

    def add_nonfinite(self, row: dict[str, Any]) -> None:
        """Append a row to nonfinite.jsonl unless it has one of the same step."""
        if all(old["step"] != row["step"] for old in read_rows(self.nonfinite)):
            _append(self.nonfinite, [row])

    def add_bad_sample(self, row: dict[str, Any]) -> bool:
        """Append a row to bad_samples.jsonl unless the sample is in there; returns whether it was new."""
        same = {key: row[key] for key in ("split", "shard", "key")}
        if any(same.items() <= old.items() for old in read_rows(self.bad_samples)):
            return False
        _append(self.bad_samples, [row])
        return True

    def add_trace(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the file of this process in trace/."""
        self.trace.mkdir(exist_ok=True)
        _append(self.trace / f"rank-{self.rank}.jsonl", rows)


def _unwritable(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "make room" if full else "check run.dir and run.name, and who may write there"
    kind = UserError if full else UsageError
    return kind(f"{path}: it cannot be written: {error.strerror}: {todo}", shared=True)


def _is_from_before_restart(owner: str) -> bool:
    """Whether `owner`, the text in the lock file, is a process of this SLURM job from before a restart."""
    match, own = re.search(r" of SLURM job (\S+), restart (\d+)$", owner), slurm_job()
    if match is None or not own:
        return False
    return match[1] == own["job"] and int(match[2]) < own["restart"]


def _kill_if_from_before_restart(owner: str) -> None:
    """Kill the owner of the lock if it is on this node and left from before a restart of this SLURM job."""
    match = re.match(r"process (\d+) on (\S+)", owner)
    if match and match[2] == socket.gethostname() and _is_from_before_restart(owner):
        with suppress(OSError):  # if it has ended meanwhile
            environment = Path(f"/proc/{match[1]}/environ").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={slurm_job()['job']}".encode() in environment:
                os.kill(int(match[1]), signal.SIGKILL)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: if the disk is full, files that matter more than the log raise an error."""


class _Printer(logging.Handler):
    """Logs by print(), so that lines appear above the progress bar, which redirects stdout.

    It leaves out errors: the process that fails first prints its error on stderr.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file. Lines that a crash cut short are skipped."""
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    """Append `rows` to a JSON-lines file. Raises UserError if that fails."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        with file.open("a", encoding="utf-8") as stream:
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
    """Write `content` as JSON, as `replace_file` does."""
    replace_file(file, json.dumps(content, indent=1) + "\n")


def replace_file(file: Path, text: str) -> None:
    """Write `file` so that a reader sees the old content or the new, never a part. Raises OSError.

    In UTF-8 on any machine; what is no valid Unicode, as in the name of a file, is shown escaped.
    """
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
