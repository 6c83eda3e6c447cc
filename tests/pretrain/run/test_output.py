"""What a run prints: plain lines into a pipe, a bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
from jobs import ROOT, Data, command, environment, succeed, write_recipe

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
