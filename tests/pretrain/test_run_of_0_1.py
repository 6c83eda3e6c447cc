"""A run folder and shards that version 0.1 wrote, beside this file, are gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from jobs import losses, status, succeed

OLD = Path(__file__).parent / "run_of_0_1"
# Of the ten steps in version 0.1, which stopped after five of them.
LOSSES = (0.693147, 0.690226, 0.685615, 0.673400, 0.662451, 0.651108, 0.642056, 0.636544, 0.630799, 0.628410)


@pytest.mark.parametrize("engine", ["fsdp", "ddp"])
def test_it_resumes_and_has_the_losses_that_it_would_have_had(tmp_path: Path, engine: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    places = (f"run.dir={tmp_path}", "run.name=run", f"data.train={OLD}/shards", f"engine.kind={engine}")
    output = succeed("pretrain", OLD / "recipe.yaml", *places)
    assert f"resumed from {run}/checkpoints/step-00000005: step 5" in output
    assert tuple(losses(run).values()) == pytest.approx(LOSSES, abs=1e-5)
    assert status(run)["state"] == "done"
