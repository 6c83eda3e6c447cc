"""W&B: one run over all starts, whatever its server, its own process or its variables do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import wandb
from aiohttp import web
from jobs import Data, metrics, run, status, succeed, write_recipe
from wandb.proto.wandb_internal_pb2 import Record

from data_tools.errors import UsageError
from launch.__main__ import main as launch
from pretrain.config.schema import Config
from pretrain.run import tracking
from pretrain.run.folder import RunFolder, log
from pretrain.run.identity import identify
from pretrain.run.wandb_environment import check_tracking

KEY = "k" * 40
STEPS = 40


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Without W&B variables, a login or settings; W&B's own process ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_SILENT", "WANDB_RUN_ID", "WANDB_CACHE_DIR"):  # those that tracking sets
        monkeypatch.setenv(name, "")
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    yield
    with suppress(Exception, SystemExit):
        wandb.teardown()
    wandb.run = None  # of a run that could not be ended


def start(path: Path, mode: str = "offline", **settings: Any) -> tracking.Tracker:
    """A tracker as a start of the run in `path` has it."""
    config = Config()
    config.run.name, config.tracking.wandb = "a-run", mode
    folder = RunFolder(path)
    folder.create()
    folder.log_to_file_and_console()
    folder.set_status("starting", anew=True, steps=STEPS, **identify(folder))
    return tracking.start_tracking(config, folder, settings, 0)


def add(path: Path, tracker: tracking.Tracker, step: int, life: int = 1) -> None:
    """A row, as training logs it."""
    row = {"step": step, "loss": life + step / 1024}
    RunFolder(path).add_metrics(row)
    tracker.log(row)


def history(path: Path) -> list[dict[str, Any]]:
    """What W&B's files of a run hold, in the order in which `wandb sync` uploads them."""
    found = []
    for file in sorted(path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.parent.name):
        for record in records(file.read_bytes()):
            if record.HasField("history"):
                items = record.history.item
                found.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return found


def records(data: bytes) -> Iterator[Record]:
    """The records of a .wandb file: a log of LevelDB, in blocks of 32 KiB, after a head of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@contextmanager
def server(status_code: int | None) -> Iterator[str]:
    """The address of a W&B server that answers with this code, or (None) never."""
    loop, url = asyncio.new_event_loop(), []
    ready = threading.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        if status_code is None:
            await asyncio.sleep(600)
        return web.json_response({"errors": [{"message": "no"}]}, status=status_code or 200)

    async def begin() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()

    loop.create_task(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ready.wait()
    yield url[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.parametrize(
    ("kind", "says"), [("refuses", "refused"), ("hangs", "deadline"), ("401", "wandb login")]
)
def test_without_its_server_a_run_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(401 if kind == "401" else None) as url:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1" if kind == "refuses" else url)
        tracker = start(tmp_path, "online")
        add(tmp_path, tracker, 1)
        tracker.finish(hurry=False)
    (told,) = [line for line in (tmp_path / "logs/rank-0.log").read_text().splitlines() if "offline" in line]
    assert says in told and "wandb sync" in told and KEY not in told
    assert [row["step"] for row in history(tmp_path)] == [1]
    assert json.loads((tmp_path / "wandb/rows.json").read_bytes()) == {"count": 1, "from": None}


def killed(path: Path) -> None:
    """One start of a run that is killed, with all its processes, at step 30; in a process of its own."""
    tracker = start(path)
    for step in range(1, 31):
        add(path, tracker, step)
    while not list(path.glob("wandb/offline-run-*/run-*.wandb")):
        pass
    for child in Path("/proc/self/task/").glob("*/children"):
        for pid in child.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_is_killed_has_all_rows_in_order_after_its_next_start(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_tracking; "
    code += f"test_tracking.killed(test_tracking.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    RunFolder(tmp_path).drop_after(20)  # where its checkpoint is
    tracker = start(tmp_path)
    for step in range(21, 36):
        add(tmp_path, tracker, step, life=2)
    tracker.finish(hurry=False)
    found = history(tmp_path)
    counts = [row["_step"] for row in found]
    assert counts == sorted(set(counts)), "W&B drops rows whose own step goes back"
    logged = {(row["step"], row["train/loss"]) for row in found}
    assert {(row["step"], row["loss"]) for row in metrics(tmp_path)} <= logged


def test_a_torn_rows_json_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/rows.json").write_bytes(b'{"count": "x", "from": [1]}')
    tracker = start(tmp_path)
    add(tmp_path, tracker, 1)
    tracker.finish(hurry=False)
    assert [row["step"] for row in history(tmp_path)] == [1]


@pytest.mark.parametrize("nowhere", ["/proc/nowhere", __file__])
def test_where_its_files_cannot_be_w_and_b_writes_into_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    for name in ("WANDB_DIR", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")  # of a process that has ended
    monkeypatch.setenv("WANDB_SWEEP_ID", "of-another")
    tracker = start(tmp_path)
    add(tmp_path, tracker, 1)
    tracker.finish(hurry=False)
    assert [row["step"] for row in history(tmp_path)] == [1]
    assert list(tmp_path.glob(f"wandb/*/run-{status(tmp_path)['wandb_id']}.wandb"))
    assert f"{nowhere} could not be written" in (tmp_path / "logs/rank-0.log").read_text()


def test_a_w_and_b_that_hangs_holds_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "HURRY", 0.2)
    monkeypatch.setattr(tracking, "FLUSH", 0.1)
    tracker = start(tmp_path)
    add(tmp_path, tracker, 1)
    while not history(tmp_path):
        pass
    core = wandb.setup()._connection._proc._process  # type: ignore[union-attr]  # W&B's own process
    os.kill(core.pid, signal.SIGSTOP)
    for step in range(2, 40):
        tracker.log({"step": step, "text": "x" * 2**18})  # more than pipes and sockets hold
    tracker.finish(hurry=True)
    assert json.loads((tmp_path / "wandb/rows.json").read_bytes())["from"] < 40
    core.kill()


@pytest.mark.parametrize(
    ("variables", "asked", "mode", "says"),
    [
        ({"WANDB_MODE": "offline"}, "online", "offline", ["WANDB_MODE=offline wins over online"]),
        ({"WANDB_MODE": "dryrun"}, "online", "offline", ["WANDB_MODE=dryrun wins over online"]),
        ({"WANDB_MODE": "disabled"}, "offline", "disabled", ["WANDB_MODE=disabled wins over offline"]),
        ({"WANDB_MODE": "offline"}, "disabled", "offline", ["WANDB_MODE=offline wins over disabled"]),
        ({"WANDB_MODE": "offline"}, "offline", "offline", []),
        ({"WANDB_DISABLED": "true"}, "online", "disabled", ["WANDB_DISABLED=true wins over online"]),
        ({"WANDB_DISABLED": "false"}, "offline", "offline", []),
        (
            {"WANDB_MODE": "", "WANDB_PROJECT": "", "WANDB_DISABLED": "", "WANDB_TAGS": ""},
            "offline",
            "offline",
            [],
        ),
        (
            {"WANDB_PROJECT": "猫 与 狗"},
            "offline",
            "offline",
            ["WANDB_PROJECT=猫 与 狗 wins over vit-pretrain"],
        ),
        (
            {"WANDB_DIR": "/elsewhere"},
            "offline",
            "offline",
            ["WANDB_DIR=/elsewhere wins over the run folder"],
        ),
        ({"WANDB_RESUME": "must"}, "offline", "offline", ["WANDB_RESUME is not used: "]),
    ],
)
def test_w_and_b_s_variables_win_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: str, mode: str, says: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = Config()
    config.tracking.wandb = asked
    assert tracking.tracking(config)[0].wandb == mode
    notes = check_tracking(config)
    assert len(notes) == len(says)
    assert all(note.startswith(f"W&B: {text}") for note, text in zip(notes, says, strict=True))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WANDB_MODE", "ofline"),
        ("WANDB_DISABLED", "perhaps"),
        ("WANDB_PROJECT", "a/b"),
        ("WANDB_TAGS", "x" * 65),
        ("WANDB_RUN_ID", "a/b"),
        ("WANDB_BASE_URL", "no address"),
        ("WANDB_API_KEY", "short"),
    ],
)
def test_a_variable_with_a_wrong_value_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    config = Config()
    config.tracking.wandb = "online" if variable == "WANDB_API_KEY" else "offline"
    with pytest.raises(UsageError, match=variable) as raised:
        check_tracking(config)
    assert "\n" not in str(raised.value)


def test_without_a_login_a_run_that_is_to_be_online_is_refused(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        write_recipe(tmp_path, data),
        "tracking.wandb=online",
        f"run.dir={tmp_path}",
        "run.name=never",
    )
    begun = run("pretrain", *settings)
    sizes = ("--nodes", 1, "--gpus-per-node", 1, "--print")
    queued = launch(["slurm", *map(str, (*settings, *sizes))])
    for code, error in ((begun.returncode, begun.stderr), (queued, capsys.readouterr().err)):
        assert code == 2
        for way_out in ("wandb login", "WANDB_API_KEY", "tracking.wandb=offline"):
            assert way_out in error and len(error.splitlines()) == 1
    assert not (tmp_path / "never").exists()


def test_a_login_in_netrc_is_one_for_its_server_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.tracking.wandb = "online"
    file = tmp_path / "netrc"
    file.write_text(f"machine here.example\n  login user\n  password {KEY}\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    with pytest.raises(UsageError, match="wandb login"):
        check_tracking(config)
    monkeypatch.setenv("WANDB_BASE_URL", "http://here.example")
    assert check_tracking(config) == []


def test_a_copied_folder_is_another_run_and_a_moved_one_the_same(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    settings = (recipe, f"run.dir={tmp_path}", "data.val=", "checkpoint.every=2")
    succeed("pretrain", *settings, "run.name=first", "train.steps=2")
    first = status(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy", symlinks=True)
    said = succeed("pretrain", *settings, "run.name=copy", "train.steps=4")
    copy = status(tmp_path / "copy")
    assert "is a copy of" in said and "resumed from" in said
    assert copy["wandb_id"] != first["wandb_id"] and copy["run_id"] != first["run_id"]
    os.rename(tmp_path / "copy", tmp_path / "moved")
    folder = RunFolder(tmp_path / "moved")
    assert identify(folder)["wandb_id"] == copy["wandb_id"]
    assert "run_id" not in identify(folder)
    shutil.rmtree(tmp_path / "moved/checkpoints/step-00000004")  # back to one of the first run
    said = succeed("pretrain", *settings, "run.name=moved", "train.steps=6")
    assert "step-00000002: step 2" in said and "is a copy of" not in said
    log.handlers.clear()
