"""Faults that a run is told to have, for drills: fault=kill:rank=1:step=5.

Kinds: kill (SIGKILL to itself) · hang · raise · disk (no file may grow beyond 64 KiB, from this save on)
happen once in a run folder, at the first step that is not below `step`. nan (the loss is not a number, for
`steps` steps) and slow (`seconds` more in each step) happen again after each restart.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from data_tools.batch import TileBatch

    Loss = Callable[[Tensor, TileBatch], Tensor]

KINDS = ("kill", "hang", "raise", "nan", "slow", "disk")
ONCE = ("kill", "hang", "raise", "disk")
STEP_PHASES = ("data", "compute", "update", "agree")  # of the step that is being done
PHASES = (*STEP_PHASES, "evaluation", "save")  # these come after it
FULL_DISK = 65536


class InjectedFault(RuntimeError):
    """What fault=raise raises."""


@dataclass(frozen=True)
class Fault:
    """rank: -1 for all. phase: where in the step. steps: how many (nan). seconds: of each step (slow)."""

    kind: str
    rank: int = 0
    step: int = 1
    phase: str = "data"
    steps: int = 1
    seconds: float = 1.0


def parse_fault(text: str) -> Fault | None:
    """`KIND:key=value:...`; None for the empty text. Raises UsageError."""
    if not text:
        return None
    kind, *settings = text.split(":")
    if kind not in KINDS:
        raise UsageError(f"fault={text}: {kind!r} is not one of {', '.join(KINDS)}")
    values: dict[str, int | float | str] = {"phase": "save"} if kind == "disk" else {}
    kinds = {"rank": int, "step": int, "steps": int, "seconds": float, "phase": str}
    assert kinds.keys() | {"kind"} == {item.name for item in fields(Fault)}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = kinds[key](value)
        except (KeyError, ValueError):
            known = ", ".join(f"{name}={kind.__name__}" for name, kind in kinds.items())
            raise UsageError(f"fault={text}: {setting!r} is none of {known}") from None
    fault = Fault(kind, **values)  # type: ignore[arg-type]
    if fault.phase not in PHASES:
        raise UsageError(f"fault={text}: phase={fault.phase} is not one of {', '.join(PHASES)}")
    return fault


class Injector:
    """Lets the fault of a run happen in this process. done: the file that remembers that it has."""

    def __init__(self, fault: Fault | None, rank: int, done: Path) -> None:
        self.fault, self.done = fault, done
        self.rank = rank
        self.mine = fault is not None and fault.rank in (rank, -1)

    def enter(self, step: int, phase: str) -> None:
        """Called at the beginning of each phase of step `step`."""
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
        """`loss`, or in a step of fault=nan one that is not a number."""
        fault = self.fault
        if fault is None or not self.mine or fault.kind != "nan":
            return loss
        if not fault.step <= step < fault.step + fault.steps:
            return loss
        return lambda logits, batch: loss(logits, batch) * float("nan")

    def _happened(self) -> bool:
        """Whether the fault happened before; notes that it does now."""
        note = self.done.with_name(f"{self.done.name}-{self.rank}")
        if note.exists():
            return True
        note.write_text(f"{self.fault}\n")
        return False
