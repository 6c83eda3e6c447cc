"""The flag that signals set."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pretrain.run.stop import STOPPING, StopFlag


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    flag = StopFlag()
    flag.install()
    yield flag
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_another_thread_sees_a_signal_while_the_main_one_is_in_a_long_call(stop: StopFlag) -> None:
    """As in a collective, where Python's own handlers wait for its end."""
    seen: list[str | None] = []
    told: list[float] = []

    def watch() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        while not stop:
            stop.listen()
            time.sleep(0.01)
        seen.append(stop.signal)
        told.append(time.monotonic())

    watcher = threading.Timer(0.1, watch)
    watcher.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
    ended = time.monotonic()
    watcher.join()
    assert seen == ["SIGUSR1"] and told[0] < ended


def test_only_the_second_ctrl_c_interrupts_though_the_first_was_heard_before_it_was_handled(
    stop: StopFlag,
) -> None:
    stop.begun = True
    os.kill(os.getpid(), signal.SIGINT)
    stop.listen()
    assert stop and stop.signal == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_a_hangup_stops_the_job_unless_it_was_ignored_at_its_start(stop: StopFlag) -> None:
    """As after nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    deaf = StopFlag()
    deaf.install()
    os.kill(os.getpid(), signal.SIGHUP)
    deaf.listen()
    assert not deaf and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop and stop.signal == "SIGHUP"
