"""Faults that a run is told to have, for drills: fault=kill:rank=1:step=5.

Kinds: kill (SIGKILL to itself) · hang · raise · disk (no file may grow beyond 64 KiB, from this save on)
happen once in a run folder, at the first step that is not below `step`. nan (the loss is not a number, for
`steps` steps) and slow (`seconds` more in each step) happen again after each restart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from data_tools.errors import UsageError

KINDS = ("kill", "hang", "raise", "nan", "slow", "disk")
ONCE = ("kill", "hang", "raise", "disk")
STEP_PHASES = ("data", "compute", "update", "agree")  # of the step that is being done
PHASES = (*STEP_PHASES, "evaluation", "save")  # these come after it


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
