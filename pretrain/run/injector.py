"""Makes the fault happen that `fault` asks for (see pretrain/config/fault.py)."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.fault import ONCE, Fault

if TYPE_CHECKING:
    from torch import Tensor

    from data_tools.tile_batch import TileBatch

    Loss = Callable[[Tensor, TileBatch], Tensor]

FULL_DISK = 65536  # bytes; the largest file after fault=disk


class InjectedFault(RuntimeError):
    """What fault=raise raises."""


class Injector:
    """Makes `fault` happen in process `rank`.

    done: a path; the file done-RANK says that a fault which happens only once has happened.
    """

    def __init__(self, fault: Fault | None, rank: int, done: Path) -> None:
        self.fault, self.done = fault, done
        self.rank = rank
        self.mine = fault is not None and fault.rank in (rank, -1)

    def enter(self, step: int, phase: str) -> None:
        """Called at the beginning of each phase of step `step`. Raises InjectedFault for fault=raise."""
        fault = self.fault
        if fault is None or not self.mine or phase != fault.phase or step < fault.step:
            return
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault.kind not in ONCE or self._happened():
            return
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "hang":
            time.sleep(1e9)
        elif fault.kind == "raise":
            raise InjectedFault(f"fault={fault.kind} in step {step}, phase {phase}")
        elif fault.kind == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK, resource.RLIM_INFINITY))

    def objective(self, step: int, loss: Loss) -> Loss:
        """`loss`, or, in the steps of fault=nan, a function whose result is not a number."""
        fault = self.fault
        if fault is None or not self.mine or fault.kind != "nan":
            return loss
        if not fault.step <= step < fault.step + fault.steps:
            return loss
        return lambda logits, batch: loss(logits, batch) * float("nan")

    def _happened(self) -> bool:
        """Whether the fault has happened before; from now on it has."""
        note = self.done.with_name(f"{self.done.name}-{self.rank}")
        if note.exists():
            return True
        note.write_text(f"{self.fault}\n", encoding="utf-8")
        return False
