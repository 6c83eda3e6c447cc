"""python -m pretrain.checkpoints, and the averaged weights, on a run that kept the best and every tenth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import ROOT, Data, environment, metrics, succeed, write_recipe
from safetensors.torch import load_file

from data_tools.errors import UsageError
from finetune.config import load_finetune
from finetune.source import open_source
from pretrain.checkpoints.__main__ import main
from pretrain.checkpoints.checkpoint import Checkpoint, complete, open_checkpoint
from pretrain.run.folder import RunFolder


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    settings = ("train.steps=34", "train.eval_every=3", "checkpoint.every=4", "optim.ema=0.8")
    keep = (
        "checkpoint.keep=2",
        "checkpoint.keep_every=10",
        "checkpoint.keep_best=true",
        "checkpoint.every=5",
    )
    succeed("pretrain", write_recipe(root, data), f"run.dir={root}", *settings, *keep)
    return root / "tiny"


def call(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == code


def best_row(run: Path) -> dict:
    rows = [row for row in metrics(run) if row.get("split") == "val"]
    return max(rows, key=lambda row: (row["top1"], -row["step"]))


def test_the_newest_every_tenth_and_the_best_stay(run: Path) -> None:
    best = json.loads((run / "checkpoints/best").read_bytes())
    wanted = best_row(run)
    assert (best["step"], best["score"]) == (wanted["step"], wanted["top1"])
    steps = {int(path.name[5:]) for path in complete(run / "checkpoints")}
    assert steps == {10, 20, 30, 34, best["step"]}


def test_evaluation_used_the_averaged_weights(run: Path, data: Data) -> None:
    row = metrics(run)[-1]
    assert row["weights"] == "ema"
    averaged, trained = (
        json.loads(succeed("finetune", "evaluate", run, data.val, "--weights", which))
        for which in ("ema", "last")
    )
    assert averaged["loss"] == pytest.approx(row["loss"], abs=1e-6)
    assert trained["loss"] != pytest.approx(row["loss"], abs=1e-4)


def test_ls_shows_what_there_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("ls", run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step-00000034")
    assert "ddp x 1  holds ema, exp_avg, exp_avg_sq, model" in lines[0]
    (line,) = [line for line in lines if "best: score" in line]
    assert line.startswith(f"step-{best_row(run)['step']:08d}")


def test_no_process_group_is_needed(run: Path) -> None:
    code = (
        "import sys, torch.distributed\nfrom pretrain.checkpoints.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert not torch.distributed.is_initialized()\n"
        "parts = ('torch.distributed.fsdp', 'torch.distributed.tensor', 'deepspeed')\n"
        "assert not [part for part in parts if part in sys.modules]"
    )
    for arguments in (["verify", run], ["consolidate", run, run.parent / "alone.safetensors"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_verify_names_the_damaged_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    call("verify", copy)
    file = copy / "checkpoints/step-00000030/rank-00000.safetensors"
    flip(file)
    call("verify", copy, code=3)
    assert "step-00000030: rank-00000.safetensors is damaged" in capsys.readouterr().err
    flip(copy / "checkpoints/step-00000034/state.json")
    open_checkpoint(copy)
    assert "step-00000034: state.json is damaged" in capsys.readouterr().out
    assert [path.name for path in complete(copy / "checkpoints")][:2] == ["step-00000034", "step-00000030"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_verify_names_what_cannot_be_read(unprivileged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unprivileged / "run/checkpoints/step-00000001"
    folder.mkdir(parents=True)
    folder.chmod(0)
    for path in (unprivileged / "run", folder):
        call("verify", path, code=3)
        assert "step-00000001: manifest.json cannot be read: Permission denied" in capsys.readouterr().err


def test_prune_keeps_what_it_is_told_and_the_best(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    call("prune", copy, "--keep", 1, "--keep-every", 20)
    steps = {int(path.name[5:]) for path in complete(copy / "checkpoints")}
    assert steps == {34, 20, best_row(run)["step"]}
    call("prune", copy, "--keep", 0, code=2)


def test_prune_counts_whole_ones_and_deletes_none_that_is_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    flip(copy / "checkpoints/step-00000034/rank-00000.safetensors")
    (copy / "checkpoints/best").unlink()
    call("prune", copy, "--keep", 1, code=3)
    assert "step-00000034: rank-00000.safetensors is damaged" in capsys.readouterr().err
    assert [path.name for path in complete(copy / "checkpoints")] == ["step-00000034", "step-00000030"]
    flip(copy / "checkpoints/step-00000030/rank-00000.safetensors")
    call("prune", copy, "--keep", 1, code=3)
    assert len(complete(copy / "checkpoints")) == 2


def test_prune_from_within_the_folder_waits_for_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    folder = RunFolder(copy)
    folder.lock()
    monkeypatch.chdir(copy / "checkpoints")
    call("prune", ".", "--keep", 1, code=2)
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert complete(copy / "checkpoints") and not (copy / "checkpoints/.lock").exists()
    shutil.copytree(copy / "checkpoints", tmp_path / "elsewhere")
    call("prune", tmp_path / "elsewhere", "--keep", 1, code=2)


def test_prune_of_a_run_that_cannot_be_written(
    unprivileged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unprivileged / "run/checkpoints").mkdir(parents=True)
    (unprivileged / "run").chmod(0o555)
    call("prune", unprivileged / "run", "--keep", 1, code=2)
    assert f"{unprivileged}/run/.lock: it cannot be written: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"checkpoint": "step-00000030", "step": 30}', "[" * 100_000])
def test_ls_of_a_run_whose_best_says_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints/best").write_text(content)
    (copy / "checkpoints/step-00000099.damaged").mkdir()
    call("ls", copy)
    output = capsys.readouterr().out
    assert "best" not in output and "step-00000099.damaged  set aside" in output


@pytest.mark.parametrize("which", ["auto", "ema", "last"])
def test_consolidate_and_export_write_the_same_file(run: Path, tmp_path: Path, which: str) -> None:
    call("consolidate", run, tmp_path / "a.safetensors", "--weights", which)
    found = Checkpoint(complete(run / "checkpoints")[0])
    written = load_file(tmp_path / "a.safetensors")
    kind = "model" if which == "last" else "ema"
    assert {f"{kind}/{name}" for name in written} == {key for key in found.tensors if key.startswith(kind)}
    for name, value in written.items():
        assert torch.equal(value, found.whole(f"{kind}/{name}"))
    source = open_source(str(run), which)
    for name, value in (
        open_source(str(tmp_path / "a.safetensors")).load(torch.device("cpu")).named_parameters()
    ):
        assert torch.equal(value, source.read(name))


def test_finetuning_begins_with_the_weights_that_are_asked_for(run: Path, data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    found = Checkpoint(complete(run / "checkpoints")[0])
    name = "encoder.layers.0.attn.qkv.weight"
    for settings, kind in ([], "ema"), (["init_weights=last"], "model"):
        _, source = load_finetune(str(recipe), [f"init={run}", *settings])
        assert torch.equal(source.read(name), found.whole(f"{kind}/{name}"))
    with pytest.raises(UsageError, match="init_weights=best"):
        load_finetune(str(recipe), [f"init={run}", "init_weights=best"])


def test_a_place_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("ls", tmp_path, code=2)
    assert str(tmp_path) in capsys.readouterr().err
