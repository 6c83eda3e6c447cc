"""A thread beside the training loop. It keeps status.json up to date and ends a process that hangs.

If one rank hangs, all others soon wait for it in a collective. The first rank that notices makes the folder
logs/hang/. Every rank that sees the folder writes its stacks to logs/rank-N.log and its step and phase to
logs/hang/rank-N.json. The rank that hangs is the one that writes nothing there, or else the one that is
furthest behind and does not wait for others.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

from ..config.fault import PHASES
from .folder import RunFolder, log, write_json
from .stop import StopFlag

# Seconds: between two looks, between two updates of status.json, and for other ranks to write their reports.
TICK = 0.4
HEARTBEAT = 5.0
PATIENCE = 4.0
PHASE_ORDER = ("start-up", *PHASES)


class Watchdog:
    """Watches this process inside a `with` statement.

    hosts: of every rank. timeout: seconds; if `enter` is not called for a little less, the process ends
    with exit code 1.
    """

    def __init__(
        self, folder: RunFolder, rank: int, hosts: list[str], timeout: float, stop: StopFlag
    ) -> None:
        self.folder, self.rank, self.hosts, self.stop = folder, rank, hosts, stop
        self.timeout = timeout
        self.limit = timeout - min(10.0, 0.25 * timeout)
        self.reports = folder.path / "logs/hang"
        self.step, self.phase, self.since = 0, PHASE_ORDER[0], time.monotonic()
        self.stepped = time.time()
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
        faulthandler.cancel_dump_traceback_later()

    def enter(self, step: int, phase: str) -> None:
        """This process begins `phase`, having done `step` steps."""
        if step != self.step:
            self.stepped = time.time()
        self.step, self.phase, self.since = step, phase, time.monotonic()

    def _run(self) -> None:
        log_file = (self.folder.path / "logs" / f"rank-{self.rank}.log").open("a")
        while not self._closed.wait(TICK):
            # For a hang that blocks Python, and with it this thread, but not the thread of faulthandler.
            faulthandler.dump_traceback_later(self.timeout, exit=True, file=log_file)
            self._update_status()
            idle = time.monotonic() - self.since
            if idle > self.limit or (idle > min(5.0, self.limit / 2) and self.reports.exists()):
                self._end_process(idle)

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
        self._write_report(idle)
        others = self._wait_for_reports()
        text = describe_hang(others, self.hosts, idle)
        rank = hanging_rank(others, len(self.hosts))
        if self.folder.set_failed(exit_code=1, reason=text, rank=rank):
            print(
                f"error: {text}; stacks in {self.folder.path / 'logs'}/rank-*.log",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    def _write_report(self, idle: float) -> None:
        frame = sys._current_frames().get(self._main or 0)
        self.reports.mkdir(parents=True, exist_ok=True)
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
        with (self.folder.path / "logs" / f"rank-{self.rank}.log").open("a") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        write_json(self.reports / f"rank-{self.rank}.json", report)

    def _wait_for_reports(self) -> list[dict[str, Any]]:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and len(list(self.reports.glob("rank-*.json"))) < len(self.hosts):
            time.sleep(0.1)
        return [json.loads(file.read_bytes()) for file in sorted(self.reports.glob("rank-*.json"))]


def clear_reports(folder: Path) -> None:
    """Remove the reports that an earlier job wrote to the run folder `folder`."""
    shutil.rmtree(folder / "logs/hang", ignore_errors=True)


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
