"""Signals that ask a job to stop: they only set a flag, which the processes agree on at a step boundary."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again


class StopFlag:
    """Set by SIGTERM, SIGUSR1 and the first SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal is not None
