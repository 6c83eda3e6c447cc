"""Faults that a run has on purpose, to test how it copes with them: fault=kill:rank=1:step=5.

kill (SIGKILL to itself), hang, raise and disk (from this save on no file may grow beyond 64 KiB) happen once
in a run folder, at the first step that is not below `step`. nan (the loss of `steps` steps is not a number)
and slow (each step takes `seconds` more) happen again after each restart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from data_tools.errors import UsageError

KINDS = ("kill", "hang", "raise", "nan", "slow", "disk")
ONCE = ("kill", "hang", "raise", "disk")
STEP_PHASES = ("data", "compute", "update", "agree")  # within a step
PHASES = (*STEP_PHASES, "evaluation", "save")  # the last two come after a step


@dataclass(frozen=True)
class Fault:
    """A fault of process `rank` (-1: of all) at the beginning of `phase` of step `step` (from 1).

    steps: how many steps nan lasts. seconds: how much longer slow makes each step.
    """

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
        raise UsageError(f"fault={text}: '{kind}' is not one of {', '.join(KINDS)}")
    values: dict[str, int | float | str] = {"phase": "save"} if kind == "disk" else {}
    kinds = {"rank": int, "step": int, "steps": int, "seconds": float, "phase": str}
    assert kinds.keys() | {"kind"} == {item.name for item in fields(Fault)}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            values[key] = kinds[key](value)
        except (KeyError, ValueError):
            known = ", ".join(f"{name}={kind.__name__}" for name, kind in kinds.items())
            raise UsageError(f"fault={text}: '{setting}' is none of {known}") from None
    fault = Fault(kind, **values)  # type: ignore[arg-type]
    least = {"rank": -1, "step": 1, "steps": 1, "seconds": 0}
    for key, low in least.items():
        if not low <= getattr(fault, key) <= 10**9:
            raise UsageError(f"fault={text}: {key} must be at least {low} and at most {10**9}")
    if fault.phase not in PHASES:
        raise UsageError(f"fault={text}: phase={fault.phase} is not one of {', '.join(PHASES)}")
    return fault
