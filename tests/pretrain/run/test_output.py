"""What a run prints: plain lines into a pipe, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest
from jobs import ROOT, TIMEOUT, Data, command, environment, status, succeed, write_recipe
from warm import start_warm, wait_warm

LINE = re.compile(
    r"step \d+/20  loss \d\.\d{4}  grad_norm [\d.]+  lr \d\.\de-\d\d  img/s \d+  data_wait [\d.]+%"
    r"  eta \d+:\d\d:\d\d"
)


def test_a_pipe_gets_one_line_per_logged_step_from_rank_0(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    settings = (f"run.dir={tmp_path}", "train.steps=20", "train.log_every=10", "train.micro_batch_size=3")
    output = succeed("pretrain", recipe, *settings, processes=2)
    lines = output.splitlines()
    assert "\r" not in output and "\x1b" not in output
    assert [line.split("/")[0] for line in lines if LINE.fullmatch(line)] == ["step 1", "step 10", "step 20"]
    assert any(line.startswith("12 images = 2 ranks × 3 × 2 accumulation") for line in lines)
    assert sum("parameters" in line for line in lines) == 1
    assert (tmp_path / "tiny/logs/rank-1.log").read_text().count("step 10/20") == 0


def test_deepspeed_asks_no_other_program_about_processors(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin/numactl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    recipe = write_recipe(tmp_path, data)
    settings = ("train.steps=2", "engine.kind=deepspeed", "engine.zero_stage=3", "data.val=")
    succeed("pretrain", recipe, f"run.dir={tmp_path}", *settings, processes=2)
    assert not (tmp_path / "asked").exists()


def test_a_terminal_gets_a_progress_bar(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    master, slave = pty.openpty()
    call = command("pretrain", recipe, f"run.dir={tmp_path}", "train.steps=20")
    process = subprocess.Popen(
        call, cwd=ROOT, env=environment() | {"TERM": "xterm"}, stdout=slave, stderr=slave
    )
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:
        pass  # the other end is closed
    assert process.wait() == 0, output
    text = output.decode()
    assert "━" in text and "/20" in text
    assert "step 20/20  loss" in text


def test_a_run_whose_terminal_is_closed_saves_and_stops(data: Data, tmp_path: Path) -> None:
    """Even if it prints nothing more than its bar until it ends, to a terminal that no longer exists."""
    recipe, run = write_recipe(tmp_path, data), tmp_path / "tiny"
    settings = (f"run.dir={tmp_path}", "train.steps=9999", "train.log_every=9999", "checkpoint.every=9999")
    settings += ("fault=slow:seconds=0.05",)
    master, slave = pty.openpty()
    call = ["-m", "pretrain", str(recipe), *settings]
    process = start_warm(call, environment() | {"TERM": "xterm"}, 0, slave, slave)
    os.close(slave)
    output = b""
    while not re.search(rb" [1-9]\d*/9999", output):
        output += os.read(master, 4096)
    os.close(master)
    process.send_signal(signal.SIGHUP)  # as the system does for the processes of the terminal
    assert wait_warm(process, TIMEOUT) == 75, output
    stopped = status(run)
    assert (stopped["state"], stopped["signal"]) == ("stopped", "SIGHUP")
    assert (run / f"checkpoints/step-{stopped['step']:08d}").is_dir()
