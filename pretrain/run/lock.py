"""The lock of a run folder: one job at a time writes to it."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from data_tools.errors import UsageError, UserError, print_line, retrying

from .rendezvous import slurm_job

LOCK_NAME = ".lock"
LOCK_PATIENCE = 30.0  # seconds

log = logging.getLogger("pretrain")


def take_lock(folder: Path, patience: float) -> TextIO:
    """Lock the file .lock of the run folder `folder`; the lock is held as long as the result is open.

    Waits `patience` seconds, because processes of a killed job may still be ending. Then raises UsageError;
    or UserError (the job may be requeued) if the folder is in use by processes of this SLURM job from before
    it was restarted. Raises OSError if the file cannot be opened.
    """
    file = folder / LOCK_NAME
    stream = retrying(lambda: file.open("a+", encoding="utf-8", errors="backslashreplace"))
    limit = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(stream.fileno()).st_nlink:
                break
            stream = file.open("a+", encoding="utf-8")  # who held the lock has deleted the file
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip()
            if not told:
                print_line(f"{folder} is in use by {owner}: waiting up to {patience:.0f} s")
                told = True
            _kill_if_from_before_restart(owner)
            if time.monotonic() > limit:
                if _is_from_before_restart(owner):
                    text = f"{folder} is still in use by {owner}: end that process"
                    raise UserError(text, shared=True) from None
                text = f"{folder} is in use by {owner}: end that job first, or set another run.name"
                raise UsageError(text, shared=True) from None
            time.sleep(0.2)
        except OSError:
            log.warning("%s: this file system has no locks; do not start two jobs in it", folder)
            break
    of_job = " of SLURM job {job}, restart {restart}".format(**slurm_job()) if slurm_job() else ""
    with suppress(OSError):  # then another job is told of no owner
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}{of_job}\n")
        stream.flush()
    return stream


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
