"""Signals that ask a job to stop. They only set a flag, which the processes exchange after each step."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopFlag:
    """True after SIGTERM, SIGUSR1, SIGHUP or SIGINT; a second SIGINT raises KeyboardInterrupt.

    Under torchrun it is also true once torchrun has ended. signal: what set it, or None. begun: whether the
    job has written to its run folder; before that a second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.begun = False
        self._interrupted = False
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._arrivals, self._wakeup = socket.socketpair()
        self._arrivals.setblocking(False)
        self._wakeup.setblocking(False)

    def install(self) -> None:
        """Handle the signals from now on; called in the main thread.

        SIGHUP stays ignored where it is, as by nohup.
        """
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._set)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def listen(self) -> None:
        """Set the flag if a signal has arrived; called in another thread.

        Python runs signal handlers only in the main thread, and not while that waits in a collective.
        """
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
