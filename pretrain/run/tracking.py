"""Weights & Biases (W&B): a copy of metrics.jsonl for looking at. Offline it needs no network."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

from ..config.schema import Config
from .files import append_rows, read_rows
from .folder import RunFolder, log


class Tracker:
    """Gets every row of metrics.jsonl. This one does nothing; subclasses pass the rows on."""

    def log(self, row: dict[str, Any]) -> None:
        """Called with each row."""

    def finish(self) -> None:
        """Called once, after the last row."""


class WandbTracker(Tracker):
    """One W&B run for the run folder: each restart continues it under the same id.

    settings: the configuration, for W&B to show. Steps are a metric of their own, because W&B's own counter
    refuses steps that a restart does again.
    """

    def __init__(self, config: Config, folder: RunFolder, settings: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project=config.tracking.project,
            name=config.run.name,
            id=folder.wandb_id(),
            dir=folder.path,
            # check() of config/checks.py allows no others.
            mode=cast(Literal["offline", "online", "disabled"], config.tracking.wandb),
            resume="allow",
            config=settings,
            # W&B's metadata would hold the command line, which may contain passwords.
            settings=wandb.Settings(x_disable_meta=True, save_code=False, console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._folder = folder
        self._missed = folder.path / "wandb/missed.jsonl"
        self._lost = False
        rows = read_rows(folder.metrics, "step")
        late = [row for row in read_rows(self._missed) if row in rows]
        folder.write(self._missed, lambda: self._missed.unlink(missing_ok=True))
        for row in late:
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Log a row; if that fails, after the next restart of the run.

        W&B's own process may have ended: SLURM sends its signals to that process too, and it ends at once.
        """
        if not self._lost:
            try:
                self._log(row)
                return
            except Exception as error:
                self._give_up(error)
        self._folder.write(self._missed, lambda: append_rows(self._missed, [row]))

    def _log(self, row: dict[str, Any]) -> None:
        split = row.get("split")
        prefix = f"{split}/" if split else "train/"
        rest = {prefix + key: value for key, value in row.items() if key not in ("step", "split")}
        self._run.log({"step": row["step"], **rest})

    def finish(self) -> None:
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._lost:
            log.warning("W&B is gone (%s); metrics.jsonl has everything", type(error).__name__)
        self._lost = True


def start_tracking(config: Config, folder: RunFolder, settings: dict[str, Any], rank: int) -> Tracker:
    """The tracker that the configuration asks for on rank 0, one that logs nothing on the other ranks."""
    if rank or config.tracking.wandb == "disabled":
        return Tracker()
    return WandbTracker(config, folder, settings)
