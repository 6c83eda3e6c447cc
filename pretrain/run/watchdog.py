"""A thread beside the training loop. It keeps status.json up to date and ends a process that hangs.

If one rank hangs, all others soon wait for it in a collective. The first rank that notices makes the folder
logs/hang/. Every rank that sees the folder writes its stacks to logs/rank-N.log and its step and phase to
logs/hang/rank-N.json. The rank that hangs is the one that writes nothing there, or else the one that is
furthest behind and does not wait for others.

Time in which this thread itself did not run, as the process was suspended or a file was slow, is no time
without progress. None of the files that it writes can stop it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from data_tools.errors import print_line

from ..config.fault import PHASES
from . import lost
from .files import read_object, write_json
from .folder import RunFolder, log
from .stop import StopFlag

# Seconds: between two looks, between two updates of status.json, and for other ranks to write their reports.
TICK = 0.4
HEARTBEAT = 5.0
PATIENCE = 4.0
# Seconds in one phase before a process looks whether it is asked if it is there; `lost.PATIENCE` is longer.
# Most steps take less, so not every process asks the file system at every tick.
LOOK_FOR_LOST = 2.0
PHASE_ORDER = ("start-up", *PHASES)


class Watchdog:
    """Watches this process inside a `with` statement.

    hosts: of every rank. timeout: seconds; if `enter` is not called for a little less, the process ends
    with exit code 1. ran: seconds for which it has watched. since: `ran` at the last call of `enter`.
    """

    def __init__(
        self, folder: RunFolder, rank: int, hosts: list[str], timeout: float, stop: StopFlag
    ) -> None:
        self.folder, self.rank, self.hosts, self.stop = folder, rank, hosts, stop
        self.timeout = timeout
        self.limit = timeout - min(10.0, 0.25 * timeout)
        self.reports = folder.path / "logs/hang"
        self.step, self.phase = 0, PHASE_ORDER[0]
        self.ran = self.since = 0.0
        self.stepped = time.time()
        self._log_file = folder.path / "logs" / f"rank-{rank}.log"
        self._main = threading.main_thread().ident
        self._written: tuple[object, ...] = ()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching; afterwards nothing is written to status.json any more."""
        self._closed.set()
        self._thread.join()

    def enter(self, step: int, phase: str) -> None:
        """This process begins `phase`, having done `step` steps."""
        if step != self.step:
            self.stepped = time.time()
        self.step, self.phase, self.since = step, phase, self.ran

    def _run(self) -> None:
        with ExitStack() as stack:
            file = None
            with suppress(OSError):
                file = stack.enter_context(self._log_file.open("ab"))
            before = time.monotonic()
            while not self._closed.wait(TICK):
                if file:  # if Python itself hangs, and this thread too, at least the stacks are written
                    faulthandler.dump_traceback_later(self.timeout, file=file)
                self._update_status()
                now = time.monotonic()
                self.ran, before = self.ran + min(now - before, 2 * TICK), now
                idle = self.ran - self.since
                if idle > LOOK_FOR_LOST and lost.answers(self.folder.path).exists():
                    lost.answer(self.folder.path, self.rank)
                if idle > self.limit or (idle > min(5.0, self.limit / 2) and self.reports.exists()):
                    self._end_process(idle)
            faulthandler.cancel_dump_traceback_later()

    def _update_status(self) -> None:
        """On rank 0 keep status.json up to date; on every rank write to it when asked to stop."""
        self.stop.listen()
        state = "stopping" if self.stop else "starting" if self.phase == PHASE_ORDER[0] else "running"
        if self.rank and state != "stopping":
            return
        news: tuple[object, ...] = (state,)
        if self.rank == 0:
            news = (state, self.step, self.phase, int(time.monotonic() / HEARTBEAT))
        if news != self._written:
            facts: dict[str, Any] = {"signal": self.stop.signal} if self.stop else {}
            if self.rank == 0:
                facts |= {"step": self.step, "phase": self.phase, "step_time": self.stepped}
            self.folder.set_status(state, **facts)
            self._written = news

    def _end_process(self, idle: float) -> None:
        text, rank = f"rank {self.rank} on {self.hosts[self.rank]} got nowhere for {idle:.0f} s", self.rank
        try:
            self._write_report(idle)
            others = self._wait_for_reports()
            text = describe_hang(others, self.hosts, idle)
            rank = hanging_rank(others, len(self.hosts))
        except Exception:  # whatever happens here, the process ends, and says why
            log.exception("the report about the hang could not be made")
        if self.folder.set_failed(exit_code=1, reason=text, rank=rank):
            print_line(f"error: {text}; stacks in {self.folder.path / 'logs'}/rank-*.log", error=True)
        os._exit(1)

    def _write_report(self, idle: float) -> None:
        frame = sys._current_frames().get(self._main or 0)
        report = {
            "rank": self.rank,
            "step": self.step + (self.phase not in ("evaluation", "save")),  # the step it is in
            "phase": self.phase,
            "seconds": round(idle, 1),
            "waits": waits_for_others(frame),
        }
        log.error("no progress: %s", json.dumps(report))
        for handler in log.handlers:
            handler.flush()
        with self._log_file.open("ab") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        self.reports.mkdir(parents=True, exist_ok=True)
        write_json(self.reports / f"rank-{self.rank}.json", report)

    def _wait_for_reports(self) -> list[dict[str, Any]]:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and len(list(self.reports.glob("rank-*.json"))) < len(self.hosts):
            time.sleep(0.1)
        return list(filter(None, map(read_object, sorted(self.reports.glob("rank-*.json")))))


def clear_reports(folder: Path) -> None:
    """Remove the reports that an earlier job wrote to the run folder `folder`."""
    for reports in (folder / "logs/hang", lost.answers(folder)):
        shutil.rmtree(reports, ignore_errors=True)


def waits_for_others(frame: FrameType | None) -> bool:
    """Whether the stack of `frame` is inside a collective."""
    while frame is not None:
        if "torch/distributed/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def hanging_rank(reports: list[dict[str, Any]], size: int) -> int:
    """The rank out of `size` that the others probably wait for; reports: of logs/hang."""
    silent = set(range(size)) - {report["rank"] for report in reports}
    if silent:
        return min(silent)
    return min(reports, key=lambda r: (r["step"], r["waits"], PHASE_ORDER.index(r["phase"]), r["rank"]))[
        "rank"
    ]


def describe_hang(reports: list[dict[str, Any]], hosts: list[str], idle: float) -> str:
    """Who hangs, where and for how long, in one sentence; idle: seconds without progress of this process."""
    rank = hanging_rank(reports, len(hosts))
    found = next((report for report in reports if report["rank"] == rank), None)
    here = f"rank {rank} on {hosts[rank]}"
    if found is None:
        last = max(reports, key=lambda report: report["step"])
        return (
            f"{here} does not answer, and the others got nowhere in step {last['step']}, phase "
            f"{last['phase']}, for {idle:.0f} s (train.step_timeout)"
        )
    return (
        f"{here} hangs in step {found['step']}, phase {found['phase']}, for {found['seconds']:.0f} s "
        f"(train.step_timeout)"
    )
