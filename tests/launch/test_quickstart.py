"""The quickstart, whole: what a newcomer gets from the first command."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from jobs import ROOT, losses, metrics, status


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files in a folder of their own, sharing this environment."""
    folder = tmp_path_factory.mktemp("quickstart") / "project"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def quickstart(clone: Path) -> tuple[Path, str, float, float]:
    """The runs/ folder, the output, the seconds to the first step, and the seconds in all."""
    import os
    import sys

    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "launch.quickstart"],
        cwd=clone,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(clone)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines, first = [], 0.0
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step 1/") and not first:
            first = time.monotonic() - began
    assert process.wait() == 0, "".join(lines)
    return clone / "runs", "".join(lines), first, time.monotonic() - began


def test_it_reaches_95_percent_on_digits_never_trained_on(quickstart: tuple[Path, str, float, float]) -> None:
    last = metrics(quickstart[0] / "quickstart_finetune")[-1]
    assert last["n"] == 359
    assert last["top1"] >= 0.95
    assert f"{last['top1']:.2%} on 359 held-out images" in quickstart[1]


def test_it_was_stopped_once_and_resumed(quickstart: tuple[Path, str, float, float]) -> None:
    folder, output, _, _ = quickstart
    assert "stopped by SIGTERM at step" in output
    assert "resumed from runs/quickstart/checkpoints/step-" in output
    steps = [1, *range(100, 2001, 100)]
    assert list(losses(folder / "quickstart")) == steps
    assert status(folder / "quickstart")["state"] == "done"


def test_no_held_out_digit_was_trained_on(quickstart: tuple[Path, str, float, float]) -> None:
    images = quickstart[0] / "quickstart-data/images"
    digits = {
        split: {path.name.split("_")[0] for path in (images / split).rglob("*.png")}
        for split in ("train", "val")
    }
    assert (len(digits["train"]), len(digits["val"])) == (1438, 359)
    assert not digits["train"] & digits["val"]


def test_one_two_three_and_four_tiles_occur(quickstart: tuple[Path, str, float, float]) -> None:
    from data_tools.augment import EvalTransform
    from data_tools.images import decode
    from data_tools.shards import ShardSet

    shards = ShardSet.open(quickstart[0] / "quickstart-data/shards/val")
    transform = EvalTransform(16, 4)
    tiles = {len(transform(decode(shards.read(i), 10**6), i)[0]) for i in range(len(shards))}
    assert tiles == {1, 2, 3, 4}


def test_the_run_folder_holds_what_the_readme_says(quickstart: tuple[Path, str, float, float]) -> None:
    run = quickstart[0] / "quickstart"
    for name in ("config.yaml", "status.json", "metrics.jsonl", "classes.json", "report.html", "wandb"):
        assert (run / name).exists(), name
    assert len(list((run / "logs").glob("rank-*.log"))) == 2
    assert (run / "checkpoints/latest").read_text().strip() == "step-00002000"
    assert len(json.loads((run / "classes.json").read_bytes())) == 10


def test_the_first_step_is_seen_early_and_the_end_soon(quickstart: tuple[Path, str, float, float]) -> None:
    print(f"first step after {quickstart[2]:.0f} s, done after {quickstart[3]:.0f} s")
    assert 0 < quickstart[2] < quickstart[3]
