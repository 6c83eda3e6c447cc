"""Pretraining from a web server that sends no parts of files."""

from __future__ import annotations

from pathlib import Path

from jobs import Data, losses, run, status, write_recipe
from range_server import serve


def test_a_run_trains_evaluates_and_resumes_without_promising_the_order(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    shards = sorted(path.name for path in data.train.glob("*.tar"))
    settings = [f"run.dir={tmp_path}/runs", "data.sequential=true", "data.trace=false"]
    with serve(data.train) as server:
        server.ranges = False
        settings.append(f"data.train={server.url}/{{{','.join(shards)}}}")
        first = run("pretrain", recipe, *settings, "train.steps=8", processes=2)
        second = run("pretrain", recipe, *settings, "train.steps=11")
        without_steps = run(
            "pretrain", recipe, *settings, "train.steps=0", "train.epochs=2", "run.name=other"
        )
        as_index = run("pretrain", recipe, *settings, "data.sequential=false")
        other_order = run("pretrain", recipe, f"run.dir={tmp_path}/runs")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert f"data: {len(shards)} shards read from front to back" in first.stdout
    assert "a resume does not continue it exactly" in first.stdout and "epochs" not in first.stdout
    found = losses(tmp_path / "runs/tiny")
    assert list(found) == list(range(1, 12)) and found[11] < found[1]
    assert status(tmp_path / "runs/tiny")["state"] == "done"
    for refused, words in (
        (without_steps, "set train.steps"),
        (as_index, "data.sequential=true"),
        (other_order, "another order of images"),
    ):
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr
