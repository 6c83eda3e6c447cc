"""W&B: a copy of metrics.jsonl, never the truth. Offline it needs no network."""

from __future__ import annotations

import json
import os
from typing import Any, Protocol

from ..config.schema import Config
from .folder import RunFolder, log, read_rows


class Tracker(Protocol):
    def log(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class NoTracker:
    def log(self, row: dict[str, Any]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbTracker:
    """One W&B run for the whole life of the run folder: each restart goes on under the same id.

    Steps are an axis of their own: W&B's counter would refuse the steps that a restart does again.
    """

    def __init__(self, config: Config, folder: RunFolder, settings: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._run = wandb.init(
            project=config.tracking.project,
            name=config.run.name,
            id=folder.wandb_id(),
            dir=folder.path,
            mode=config.tracking.wandb,
            resume="allow",
            config=settings,
            # The metadata would hold the command line, and with it what users put there.
            settings=wandb.Settings(x_disable_meta=True, save_code=False, console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._missed = folder.path / "wandb/missed.jsonl"
        self._lost = False
        rows = list(read_rows(folder.metrics))
        late = [row for row in read_rows(self._missed) if row in rows]
        self._missed.unlink(missing_ok=True)
        for row in late:
            self.log(row)

    def log(self, row: dict[str, Any]) -> None:
        """Log a row. W&B's own process may be gone: signals of SLURM go to it too, and it obeys at once. The
        rows that it misses are logged in the next life of the run."""
        if not self._lost:
            try:
                self._log(row)
                return
            except Exception as error:
                self._give_up(error)
        with self._missed.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

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
    """The tracker that the configuration asks for, on rank 0; on the others nothing is tracked."""
    if rank or config.tracking.wandb == "disabled":
        return NoTracker()
    return WandbTracker(config, folder, settings)
