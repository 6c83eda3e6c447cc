"""Which run a folder holds, so that a copy of the folder is a run of its own."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from .folder import RunFolder, log


def identify(folder: RunFolder) -> dict[str, Any]:
    """What status.json is to say about which run this is; called when a job begins.

    place: the folder. wandb_id: random at the first start. A copied folder gets new ids; copied_from: the ids
    of the runs that its older checkpoints are of. A folder that was moved keeps its ids.
    """
    status = folder.status()
    found = {"place": str(folder.path.resolve()), "wandb_id": status.get("wandb_id") or secrets.token_hex(4)}
    if original := _original(folder, status):
        found |= {"wandb_id": secrets.token_hex(4), "run_id": secrets.token_hex(8)}
        found["copied_from"] = [*status.get("copied_from", []), status.get("run_id")]
        with suppress(OSError):  # else they would be uploaded twice
            os.rename(folder.path / "wandb", folder.path / f"wandb-of-{status['wandb_id']}")
        log.info(
            "%s is a copy of %s: from now on a run of its own, with another W&B id", folder.path, original
        )
    asked = os.environ.get("WANDB_RUN_ID") or found["wandb_id"]
    if status.get("wandb_id") and asked != found["wandb_id"]:
        log.info("W&B: WANDB_RUN_ID=%s wins over the id of the run, %s", asked, found["wandb_id"])
    return found | {"wandb_id": asked}


def _original(folder: RunFolder, status: dict[str, Any]) -> Path | None:
    """The folder that `folder` was copied from, if that still holds the same run."""
    place, own = Path(str(status.get("place"))), status.get("wandb_id")
    with suppress(OSError):
        if own and RunFolder(place).status().get("wandb_id") == own and not place.samefile(folder.path):
            return place
    return None
