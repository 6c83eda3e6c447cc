"""A full disk: the checkpoints before stay whole, and the run ends or goes on as it was told."""

from __future__ import annotations

import errno
import logging
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from jobs import Data, Job, losses, run, status, write_recipe

from data_tools.errors import UserError
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.checkpoints.saver import SPARE, Saver, _make_room
from pretrain.engine.ranges import LocalRange
from pretrain.run.files import read_rows
from pretrain.run.folder import RunFolder
from pretrain.run.processes import ALONE

SIZE = 4 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Within it no file of this process grows above `size`: writing fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(saver: Saver, step: int, numel: int) -> None:
    value = torch.full((numel,), float(step))
    saver.save(step, [LocalRange("model/a", (numel,), 0, value, 0, 1)], {"step": step})
    saver.finish()


def saver(root: Path, on_error: str = "stop") -> Saver:
    return Saver(root, ALONE, background=True, on_error=on_error)


def test_a_write_that_fails_half_way_names_path_and_bytes(tmp_path: Path) -> None:
    writer = saver(tmp_path)
    save(writer, 1, 10)
    with files_limited_to(100_000), pytest.raises(UserError) as raised:
        save(writer, 2, 100_000)
    assert raised.value.exit_code == 1
    assert str(tmp_path / "step-00000002.tmp") in str(raised.value) and "400000 bytes" in str(raised.value)
    assert [path.name for path in complete(tmp_path)] == ["step-00000001"]
    assert not list(tmp_path.glob("*.tmp"))
    Checkpoint(tmp_path / "step-00000001").verify()
    assert (tmp_path / "latest").read_text() == "step-00000001\n"


def test_told_to_continue_it_warns_and_writes_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = saver(tmp_path, "continue")
    with caplog.at_level(logging.WARNING, "pretrain"), files_limited_to(100_000):
        save(writer, 2, 100_000)
    assert "400000 bytes" in caplog.text and "going on" in caplog.text
    assert writer.error is not None
    assert not list(tmp_path.glob("*.tmp"))
    save(writer, 3, 100_000)
    assert writer.error is None
    Checkpoint(tmp_path / "step-00000003").verify()


def test_room_is_looked_for_before_anything_is_written(small_disk: Path) -> None:
    writer = saver(small_disk)
    save(writer, 1, 10)
    with pytest.raises(UserError, match=f"needs {SIZE + SPARE} bytes, .* are free"):
        save(writer, 2, SIZE // 4)
    assert [path.name for path in complete(small_disk)] == ["step-00000001"]
    assert not list(small_disk.glob("*.tmp"))


def test_on_a_full_disk_status_stays_true_and_rows_wait_until_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(small_disk)
    folder.set_status("running", anew=True, step=1, phase="data")
    folder.add_metrics({"step": 1})
    with suppress(OSError), (small_disk / "fill").open("wb", buffering=0) as fill:
        while True:
            fill.write(bytes(4096))
    folder.set_status("running", step=2)
    assert (folder.status()["step"], folder.status()["phase"]) == (2, "data")
    long_rows = [{"step": step, "text": "x" * 5000} for step in (2, 3)]
    with caplog.at_level(logging.WARNING, "pretrain"):
        for row in long_rows:
            folder.add_metrics(row)
    assert caplog.text.count(f"{folder.metrics} could not be written: No space left on device") == 1
    assert read_rows(folder.metrics) == [{"step": 1}]
    assert folder.set_failed(exit_code=1, reason="full", traceback="y" * 5000)
    assert (folder.status()["state"], folder.status()["reason"]) == ("failed", "full")
    assert not list(small_disk.glob(".status.json.*"))
    (small_disk / "fill").unlink()
    folder.add_metrics({"step": 4})
    assert read_rows(folder.metrics) == [{"step": 1}, *long_rows, {"step": 4}]


def test_a_disk_that_does_not_say_how_much_room_it_has_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    _make_room(tmp_path / "checkpoints/step-1.tmp", 10**15)
    assert (tmp_path / "checkpoints/step-1.tmp").is_dir()


def test_a_run_on_a_full_disk_ends_with_1_or_goes_on_when_told(
    data: Data, small_disk: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, data)
    folder = small_disk / "tiny"
    call = (recipe, f"run.dir={small_disk}", "checkpoint.keep=0", "checkpoint.every=2")
    done = run("pretrain", *call, "train.steps=120", "data.trace=false")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"error: {folder}/checkpoints: no room for step-" in done.stderr and "bytes" in done.stderr
    assert status(folder)["exit_code"] == 1
    published = complete(folder / "checkpoints")
    assert published
    for path in published:
        Checkpoint(path).verify()

    told = ("checkpoint.on_error=continue", "checkpoint.keep=1")
    job = Job(folder, "pretrain", *call, "train.steps=120", "data.trace=false", *told)
    job.wait_until(lambda: "going on" in (folder / "logs/rank-0.log").read_text())
    for path in published[1:]:
        shutil.rmtree(path)
    code, output = job.finish()
    assert code == 0, output
    assert [path.name for path in complete(folder / "checkpoints")] == ["step-00000120"]
    assert sorted(losses(folder)) == list(range(1, 121))
