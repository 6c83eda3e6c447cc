"""Signals that ask a job to stop: they only set a flag, which the processes agree on at a step boundary."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Set by SIGTERM, SIGUSR1 and the first SIGINT; a second SIGINT interrupts at once.

    Under torchrun it is set as well when torchrun is gone: nobody would notice the end of this process.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.begun = False  # until then there is nothing to put in order after a second SIGINT
        self._interrupted = False
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._arrivals, self._wakeup = socket.socketpair()
        self._arrivals.setblocking(False)
        self._wakeup.setblocking(False)

    def install(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._set)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def listen(self) -> None:
        """Let another thread set the flag while the main one is where no handler runs, as in a collective."""
        with suppress(BlockingIOError):
            for number in self._arrivals.recv(64):
                if number in STOPPING:
                    self.signal = signal.Signals(number).name

    def _set(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            if not self.begun:
                os._exit(1)
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        if self._parent not in (None, os.getppid()):
            self.signal = self.signal or "the end of torchrun"
        return self.signal is not None
