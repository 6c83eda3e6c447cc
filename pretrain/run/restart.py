"""Whether a run begins at step 0, and where what it has so far is kept then."""

from __future__ import annotations

import os
from functools import partial
from itertools import count

from data_tools.errors import UsageError, UserError, print_line, retrying

from ..config.schema import Config
from .files import read_rows
from .folder import RunFolder
from .rendezvous import slurm_job

STAYS = ("logs", "slurm", ".lock", ".status.lock")  # in the run folder, and earlier folders before-N


def begins_anew(config: Config, folder: RunFolder) -> bool:
    """Whether this start is to leave the checkpoints of the run aside.

    Of a job that SLURM or torchrun starts again by itself only the first start is.
    """
    job = slurm_job().get("job")
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    again |= job is not None and job == folder.status().get("job")
    return config.run.resume == "restart" and not again


def begin(folder: RunFolder, anew: bool) -> None:
    """Make sure that a run without a checkpoint has no rows of earlier steps; called by rank 0 at its start.

    anew: what the run has so far is kept aside. Otherwise this happens only if it never had a checkpoint.
    Raises UsageError for any other run that has had steps.
    """
    if not anew:
        check_not_lost(folder)
    if anew or steps_done(folder):
        _set_aside(folder)


def check_not_lost(folder: RunFolder) -> None:
    """Raises UsageError for a run without a checkpoint that has had steps and one."""
    done, status = steps_done(folder), folder.status()
    if done and ("checkpoint" in status or "run_id" not in status):  # before 0.2, status did not say so
        raise UsageError(
            f"{folder.path}: its run has done {done} steps, but {folder.checkpoints} has no checkpoint: put "
            f"its checkpoints back; or begin again with run.resume=restart, which keeps the old files aside",
            shared=True,
        )


def steps_done(folder: RunFolder) -> int:
    """How many steps the run in `folder` has done, as far as its metrics and its status tell."""
    step = folder.status().get("step")
    rows = read_rows(folder.metrics, "step")
    return max([step if isinstance(step, int) else 0, *(row["step"] for row in rows)])


def _set_aside(folder: RunFolder) -> None:
    """Move what the run has so far to a folder before-N in its folder."""
    entries = [path for path in retrying(lambda: list(folder.path.iterdir())) if path.name not in STAYS]
    entries = [path for path in entries if not path.name.startswith("before-")]
    # The checkpoints first: if this is interrupted, no later start takes them for a run without its metrics.
    entries.sort(key=lambda path: (path != folder.checkpoints, path.name))
    if not retrying(lambda: list(folder.checkpoints.iterdir())) and len(entries) == 1:
        return
    aside = next(path for n in count(1) if not os.path.lexists(path := folder.path / f"before-{n}"))
    try:
        aside.mkdir()
        for path in entries:
            retrying(partial(os.rename, path, aside / path.name))
        folder.checkpoints.mkdir()
    except OSError as error:
        text = f"{folder.path}: what the run has so far cannot be moved to {aside.name}: {error.strerror}"
        raise UserError(f"{text}: look after the disk, then start again", shared=True) from None
    print_line(f"the run begins again at step 0; what it had so far is in {aside}")
