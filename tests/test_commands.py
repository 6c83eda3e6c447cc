"""What every command does where nobody reads what it prints, or where there is no room for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import ROOT, TIMEOUT, Data, environment, succeed, write_recipe
from warm import start_warm, wait_warm

SETTINGS = "run.dir={root} run.name={name} train.steps=1 data.val= tracking.wandb=disabled"
RESULTS = (  # commands that are there for what they print
    "data_tools verify {val} --ranks 2",
    "data_tools bench {val} --images 32 --threads 1",
    "pretrain.checkpoints ls {run}",
    "finetune evaluate {run} {val}",
    "finetune predict {run} {image}",
    "launch status {run}",
    "launch status {root}",
    "launch slurm {recipe} --nodes=1 --gpus-per-node=1 --print",
)
WORK = (  # commands that leave something behind, or an exit code, and only tell of it
    "data_tools pack {images} {new}",
    "data_tools index {val}",
    "data_tools preview {val} {new}.png --images 1",
    f"pretrain {{recipe}} {SETTINGS}",
    f"finetune {{recipe}} init={{run}} {SETTINGS}",
    "finetune export {run} {new}.safetensors --format=safetensors",
    "finetune convert {pickle} {new}.safetensors",
    "pretrain.checkpoints verify {run}",
    "pretrain.checkpoints prune {run} --keep=1",
    "pretrain.checkpoints consolidate {run} {new}.safetensors",
    "launch report {run}",
)


@pytest.fixture(scope="module")
def places(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the commands are given: a run and its parts, in which all that is new comes to lie."""
    root = tmp_path_factory.mktemp("commands")
    recipe = write_recipe(root, data)
    succeed("pretrain", recipe, f"run.dir={root}", "train.steps=1")
    torch.save({"a": torch.ones(3)}, root / "pickle.pt")
    image = next(data.images.rglob("*.png"))
    places = {"root": root, "run": root / "tiny", "recipe": recipe, "val": data.val, "image": image}
    return places | {"images": data.images, "pickle": root / "pickle.pt"}


def call(command: str, places: dict[str, Path], stdout: int, stderr: int) -> int:
    """The exit code of a command."""
    name = f"new-{(*RESULTS, *WORK).index(command)}"
    words = command.format(**places, name=name, new=places["root"] / name).split()
    return wait_warm(start_warm(["-m", *words], environment(), 0, stdout, stderr), TIMEOUT)


@pytest.mark.parametrize("command", (*RESULTS, *WORK))
def test_a_command_whose_reader_goes_ends_quietly_and_work_goes_on(
    command: str, places: dict[str, Path], tmp_path: Path
) -> None:
    unread, closed = os.pipe()
    os.close(unread)
    with (tmp_path / "stderr").open("wb") as stderr, open("/dev/full", "wb") as full:
        code = call(command, places, closed, (full if command in WORK else stderr).fileno())
    os.close(closed)
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert (code, said) == (0 if command in WORK else 141, "")


@pytest.mark.parametrize("command", (RESULTS[2], WORK[-1]))
def test_a_command_that_has_no_room_for_its_result_says_so(
    command: str, places: dict[str, Path], tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("wb") as stderr, open("/dev/full", "wb") as full:
        code = call(command, places, full.fileno(), stderr.fileno())
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    wanted = (0, "") if command in WORK else (1, "error: standard output: No space left on device\n")
    assert (code, said) == wanted


@pytest.mark.parametrize("module", ["pretrain.run.report", "pretrain.train", "data_tools.verify"])
def test_a_module_that_is_no_command_says_so(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {module} is no command")
