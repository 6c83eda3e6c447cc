"""The files of a run: whatever they hold, and whatever fails, the run goes on and nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import ROOT, Data, metrics, run, status, write_recipe

from data_tools.errors import UserError
from pretrain.config.schema import Config
from pretrain.run.files import append_rows, read_object, read_rows
from pretrain.run.folder import RunFolder
from pretrain.run.report import write_report

TORN = [b"\xff\xfe\x00", b"5", b"[]", b"null", b'{"step": "7"}', b"[" * 100_000, b'{"step": 3, "loss"']


@pytest.mark.parametrize(
    "content", [b"[]", b"5", b"", b"\xff", b'"running"', b'{"state": 5}', b'{"step": 1}']
)
def test_a_status_that_no_run_wrote_is_as_none(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.status_file.write_bytes(content)
    assert folder.status() == {}
    folder.set_status("running", step=4)
    assert (folder.status()["state"], folder.status()["step"]) == ("running", 4)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "nonfinite.jsonl", "bad_samples.jsonl", "trace/rank-0.jsonl"]
)
def test_lines_that_are_no_rows_are_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder, file = RunFolder(tmp_path), tmp_path / name
    rows = [{"step": step, "split": "train", "shard": "a.tar", "key": str(step)} for step in range(1, 4)]
    append_rows(file, rows)
    with file.open("ab") as stream:
        stream.write(b"\n".join(TORN))
    append_rows(file, rows[:1])
    assert read_rows(file, "step") == [*rows, rows[0]]
    with caplog.at_level(logging.WARNING, "pretrain"):
        folder.drop_after(2)
        folder.drop_after(2)
    assert file.read_text() == "".join(json.dumps(row) + "\n" for row in (*rows[:2], rows[0]))
    assert file.with_name(f"{file.name}.damaged").read_bytes() == b"\n".join(TORN) + b"\n"
    assert caplog.text.count(f"{file}: {len(TORN)} lines that are no row of it: moved") == 1


def test_a_resumed_run_passes_over_what_is_torn(data: Data, tmp_path: Path) -> None:
    call = (write_recipe(tmp_path, data), f"run.dir={tmp_path}", "checkpoint.every=2", "train.log_every=1")
    assert run("pretrain", *call, "train.steps=4").returncode == 0
    folder = tmp_path / "tiny"
    for name in ("metrics.jsonl", "bad_samples.jsonl", "nonfinite.jsonl"):
        with (folder / name).open("ab") as stream:
            stream.write(b"\n".join(TORN))
    (folder / "status.json").write_bytes(b"[]")
    done = run("pretrain", *call, "train.steps=6")
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in metrics(folder) if "split" not in row] == [1, 2, 3, 4, 5, 6]
    assert (status(folder)["state"], status(folder)["step"]) == ("done", 6)


def fail_with(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> list[int]:
    """From now on `times` replacements of a file fail; returns what is left of them."""
    real, left = os.replace, [times]

    def replace(*names: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        real(*names)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("pretrain.run.files.RETRIES", (0.0, 0.0))
    monkeypatch.setattr("data_tools.errors._DISK_WAITS", (0.0, 0.0))
    return left


@pytest.mark.parametrize("times, warned", [(2, 0), (3, 1), (9, 1)])
def test_a_status_that_cannot_be_written_is_tried_again_and_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int, warned: int
) -> None:
    folder = RunFolder(tmp_path)
    left = fail_with(monkeypatch, errno.EIO, times)
    with caplog.at_level(logging.WARNING, "pretrain"):
        while left[0]:
            folder.set_status("running", step=1)
    assert (
        caplog.text.count("status.json could not be written: Input/output error; the run goes on") == warned
    )
    folder.set_status("running", step=2)
    assert read_object(folder.status_file)["step"] == 2


@pytest.mark.parametrize(
    "number, code, todo", [(errno.ESTALE, 1, "disk or the network"), (errno.EACCES, 2, "who may write")]
)
def test_at_the_start_what_passes_is_not_called_a_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, todo: str
) -> None:
    folder = RunFolder(tmp_path)
    append_rows(folder.metrics, [{"step": 9}])
    fail_with(monkeypatch, number, 100)
    with pytest.raises(UserError, match=f"metrics.jsonl: it cannot be written: .*{todo}") as raised:
        folder.drop_after(5)
    assert raised.value.exit_code == code


def test_a_lock_of_the_status_that_somebody_holds_does_not_hold_up_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (tmp_path / ".status.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        folder.set_status("running", step=3)
        assert time.monotonic() - began < 30
    assert folder.status()["step"] == 3


def test_in_a_folder_that_became_read_only_nothing_raises_but_the_next_start(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pretrain.run.files.RETRIES", (0.0,))
    folder = RunFolder(unprivileged / "run")
    folder.create()
    folder.path.chmod(0o555)
    with caplog.at_level(logging.WARNING, "pretrain"):
        for step in (1, 2):
            folder.set_status("running", step=step)
            assert folder.set_failed(exit_code=1, reason="why"), "nobody else has told the failure"
            folder.add_metrics({"step": step})
            folder.add_trace([{"step": step}])
    assert caplog.text.count("could not be written") == 3
    with pytest.raises(UserError, match=f"{folder.path}: it cannot be written: Permission denied"):
        folder.create()


def test_a_watchdog_that_was_suspended_kills_nothing_and_one_that_was_not_says_why(tmp_path: Path) -> None:
    """SIGSTOP for longer than the patience, then a hang, in a run folder that cannot be written."""
    code = (
        "import sys, time; from pathlib import Path; from pretrain.run.folder import RunFolder; "
        "from pretrain.run.stop import StopFlag; from pretrain.run.watchdog import Watchdog\n"
        "folder = RunFolder(Path(sys.argv[1]))\n"
        "with Watchdog(folder, 0, ['here'], 4.0, StopFlag()) as watch:\n"
        "    watch.enter(1, 'data'); print('begun', flush=True); sys.stdin.readline()\n"
        "    watch.enter(2, 'compute'); print('alive', flush=True); time.sleep(600)\n"
    )
    nowhere = tmp_path / "file/run"
    (tmp_path / "file").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(nowhere)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, 19)  # SIGSTOP
        time.sleep(5.0)
        os.kill(process.pid, 18)  # SIGCONT
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "alive\n"
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "error: rank 0 on here" in errors


@pytest.mark.parametrize(
    "row", [{"step": 1, "loss": "x"}, {"step": 1, "images": "many"}, {"step": 1, "lr": [1]}]
)
def test_odd_rows_end_no_run_at_its_report(
    tmp_path: Path, row: dict[str, object], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.run.files.RETRIES", ())
    folder = RunFolder(tmp_path)
    append_rows(folder.metrics, [row, row])
    with caplog.at_level(logging.WARNING, "pretrain"):
        assert not write_report(folder, Config())
    assert "report.html could not be written" in caplog.text
