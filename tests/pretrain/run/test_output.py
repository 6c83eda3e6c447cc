"""What a run prints: plain lines into a pipe, a bar on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from jobs import ROOT, TIMEOUT, Data, command, environment, status, succeed, write_recipe
from PIL import Image
from warm import start_warm, wait_warm

from data_tools.errors import DataError, print_line
from launch.__main__ import main as launch
from pretrain.job import _fail_unexpectedly, fail
from pretrain.run.folder import RunFolder, log
from pretrain.run.metrics import progress_bar
from pretrain.run.processes import ALONE

LINE = re.compile(
    r"step \d+/20  loss \d\.\d{4}  grad [\d.]+  lr \d\.\de-\d  img/s \d+  wait \d+%  eta \d+:\d\d:\d\d"
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
    with open(tmp_path / "stderr", "wb") as stderr:
        process = start_warm(call, environment() | {"TERM": "xterm"}, 0, slave, stderr.fileno())
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


def test_training_goes_on_where_nobody_reads_what_it_prints(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    unread, stdout = os.pipe()
    os.close(unread)
    call = ["-m", "pretrain", str(recipe), f"run.dir={tmp_path}", "train.steps=3"]
    with open("/dev/full", "wb") as full:
        assert wait_warm(start_warm(call, environment(), 0, stdout, full.fileno()), TIMEOUT) == 0
        text = (tmp_path / "tiny/logs/rank-0.log").read_text(encoding="utf-8")
        assert "step 3/3  loss" in text and "done: step 3" in text
        call += ["run.name=wrong", "data.max_pixels=100"]  # no image is read
        assert wait_warm(start_warm(call, environment(), 0, stdout, full.fileno()), TIMEOUT) == 3
    os.close(stdout)
    assert " error: " in (tmp_path / "wrong/logs/rank-0.log").read_text(encoding="utf-8")


def test_a_closed_stream_is_not_given_to_the_next_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from data_tools.errors import escape_output, print_line; escape_output(); "
        f"file = open({str(tmp_path / 'x')!r}, 'w'); assert file.fileno() > 2; "
        "print('one'); print_line('two', error=True); os.write(1, b'three'); os.write(2, b'four')"
    )
    for closed in ("<&- >&- 2>&-", ">&-", "2>&-"):
        command = f'exec {sys.executable} -c "$0" {closed}'
        done = subprocess.run(["sh", "-c", command, code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr
        assert (tmp_path / "x").read_bytes() == b""


def test_a_locale_without_a_letter_shows_it_escaped() -> None:
    code = "from data_tools.errors import *; escape_output(); print_line('\\u65e5 \\xd7'); print('\\u65e5')"
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.stdout.decode("latin-1") == "\\u65e5 ×\n\\u65e5\n"


FORGED = "\nerror: forged\r\x1b[2J\u202e\u2028"


def test_no_line_begins_with_what_others_wrote(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    folder = RunFolder(tmp_path)
    folder.log_to_file_and_console()
    log.warning("unreadable sample %s", "a" + FORGED)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        fail(DataError("2 shards are damaged:\n  a" + FORGED), 0, first_only=True)
    try:
        raise KeyError("unexpected" + FORGED) from ValueError(FORGED)
    except KeyError as error:
        with pytest.raises(SystemExit):
            _fail_unexpectedly(folder, ALONE, ["here"], error)
    log.handlers.clear()
    shown, told = capfd.readouterr()
    logged = (tmp_path / "logs/rank-0.log").read_text(encoding="utf-8")
    assert launch(["status", str(tmp_path)]) == 1
    stands = capfd.readouterr().out
    # The form that torchrun reads, and shows as it is.
    repeated = json.loads((tmp_path / "error.json").read_bytes())["message"]["extraInfo"]["py_callstack"]
    for text in (shown, told, logged, stands, repeated):
        assert "error: forged" in text and not any(c in text for c in "\r\x1b\u202e\u2028")
        assert not any(line.startswith("error: forged") for line in text.splitlines())
    assert "error: 2 shards are damaged:\n  a\\nerror" in told, "our own lists stay lists"
    assert "\n  Traceback (most recent call last):\n" in told and '\n    File "' in told


def test_a_run_shows_names_in_shards_escaped(tmp_path: Path) -> None:
    shards, picture = tmp_path / "shards", io.BytesIO()
    shards.mkdir()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for i in range(24):
            bad = i % 8 == 0
            image = (f"{i}{FORGED if bad else ''}.png", picture.getvalue()[: 40 if bad else None])
            for name, content in (image, (image[0].replace(".png", ".cls"), b"%d" % (i % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (shards / "classes.json").write_text(json.dumps(["a" + FORGED, "b" + FORGED]))
    succeed("data_tools", "index", shards)
    recipe = write_recipe(tmp_path, Data(shards, shards, tmp_path))
    settings = (f"run.dir={tmp_path}", "train.steps=1", "data.max_bad_fraction=0.5")
    shown = succeed("pretrain", recipe, *settings)
    image = tmp_path / f"{FORGED.replace('/', '')}\x7f.png"
    image.write_bytes(picture.getvalue())
    shown += succeed("finetune", "predict", tmp_path / "tiny", image)
    asked = succeed("finetune", "predict", "--json", tmp_path / "tiny", image)
    assert json.loads(asked)["image"] == str(image) and asked[:-1].isprintable()
    files = ("logs/rank-0.log", "report.html", "status.json", "bad_samples.jsonl", "classes.json")
    texts = [shown, *((tmp_path / "tiny" / name).read_text(encoding="utf-8") for name in files)]
    assert all("error: forged" in texts[i] for i in (0, 1, 2))
    for text in texts:
        assert not any(c in text for c in "\r\x1b\u202e\u2028") and "\nerror:" not in text


def test_a_terminal_may_go_while_the_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with progress_bar(0, 10, 0) as advance:
            advance(1)
            os.close(master)
            print_line("step 2")
            advance(2)
        print_line("step 3")
        monkeypatch.undo()
