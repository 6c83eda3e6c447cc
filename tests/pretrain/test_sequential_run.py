"""Pretraining from a web server that sends no parts of files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from jobs import Data, WarmJob, losses, run, status, succeed, write_recipe
from range_server import serve

from data_tools.errors import UsageError
from pretrain.config.loading import load
from pretrain.inputs import open_inputs


def test_a_run_trains_evaluates_and_resumes_without_promising_the_order(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    shards = sorted(path.name for path in data.train.glob("*.tar"))
    settings = [f"run.dir={tmp_path}/runs", "data.sequential=true", "data.trace=false"]
    with serve(data.train) as server:
        server.ranges = False
        settings.append(f"data.train={server.url}/{{{','.join(shards)}}}")
        first = succeed("pretrain", recipe, *settings, "train.steps=8", processes=2)
        succeed("pretrain", recipe, *settings, "train.steps=11")
    other_order = run("pretrain", recipe, f"run.dir={tmp_path}/runs")
    assert f"data: {len(shards)} shards read from front to back" in first
    assert "a resume does not continue it exactly" in first and "epochs" not in first
    found = losses(tmp_path / "runs/tiny")
    assert list(found) == list(range(1, 12)) and found[11] < found[1]
    assert status(tmp_path / "runs/tiny")["state"] == "done"
    assert other_order.returncode == 2 and "another order of images" in other_order.stderr


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_ends_the_wait_for_a_busy_server(data: Data, tmp_path: Path, processes: int) -> None:
    pytest.importorskip("aiohttp")
    from strict_server import strict_server

    recipe = write_recipe(tmp_path, data)
    shards = ",".join(sorted(path.name for path in data.train.glob("*.tar")))
    settings = [f"run.dir={tmp_path}/runs", "data.sequential=true", "data.trace=false", "train.steps=10000"]
    (tmp_path / "runs").mkdir()
    with strict_server(data.train) as server:
        settings += [f"data.train={server.url}/{{{shards}}}", "train.log_every=1", "train.eval_every=0"]
        job = WarmJob(tmp_path / "runs/tiny", "pretrain", recipe, *settings, processes=processes)
        job.wait_for_step(2)
        server.busy = [(429, "600")] * 100
        job.wait_until(lambda: len(server.busy) <= 100 - max(1, processes))
        job.process.send_signal(signal.SIGTERM)
        code, output = job.finish()
    found = status(tmp_path / "runs/tiny")
    assert (found["state"], found["exit_code"]) == ("stopped", 75), output
    assert code == (1 if processes else 75)  # torchrun turns every other code into 1
    assert server.busy, output
    if not processes:
        assert found["step"] >= 2 and f"at step {found['step']}, checkpoint saved" in output


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.steps=0", "train.epochs=2"], "set train.steps"),
        (["data.sequential=false"], "data.sequential=true, if the server sends no parts"),
        (["data.trace=true"], "data.trace needs indexed shards"),
        (["data.val="], "set model.num_classes"),
        (["objective.name=regression"], "objective.name=regression needs indexed shards"),
        (["data.train=pipe:cat x.tar"], "reads shards from http"),
    ],
)
def test_what_needs_an_index_is_refused(data: Data, tmp_path: Path, settings: list[str], says: str) -> None:
    recipe = write_recipe(tmp_path, data)
    usual = ["data.sequential=true", "data.trace=false", "data.train=http://127.0.0.1/x.tar"]
    with pytest.raises(UsageError, match=says):
        open_inputs(load(str(recipe), [*usual, *settings]))
