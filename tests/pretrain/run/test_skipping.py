"""train.skip: what is due inside the steps that are passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import Data, losses, metrics, status, succeed, write_recipe

from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.run.skipping import steps_before


@pytest.mark.parametrize(
    ("ranges", "step", "before"),
    [
        ([], 5, 4),
        ([[3, 9]], 9, 2),
        ([[3, 9]], 10, 9),
        ([[3, 5], [6, 9]], 9, 2),
        ([[3, 9], [4, 6]], 9, 2),
        ([[1, 9]], 9, 0),
        ([[3, 99]], 50, 2),
    ],
)
def test_steps_passed_over_together_are_one_piece(ranges: list[list[int]], step: int, before: int) -> None:
    assert steps_before(ranges, step) == before


def test_what_is_due_within_skipped_steps_happens_at_their_end(data: Data, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, data), tmp_path / "tiny"
    settings = (f"run.dir={tmp_path}", "train.eval_every=4", "checkpoint.every=4", "checkpoint.keep=0")
    settings += ("train.skip=[[3,6],[11,13]]", "train.steps=15")
    succeed("pretrain", recipe, *settings)
    evaluated = [row["step"] for row in metrics(run) if row.get("split") == "val"]
    saved = [path.name[5:].lstrip("0") for path in reversed(complete(run / "checkpoints"))]
    assert evaluated == [6, 8, 13, 15] and saved == ["6", "8", "13", "15"]
    assert list(losses(run)) == [1, 2, 7, 8, 9, 10, 14, 15] and status(run)["step"] == 15
    assert Checkpoint(complete(run / "checkpoints")[0]).state["position"] == 15 * 12
