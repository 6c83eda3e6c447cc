"""Processes that srun starts find each other, or say in the time they are given who does not find whom."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from itertools import count
from typing import Any

import pytest
from jobs import ROOT
from torch.distributed import Store

from data_tools.errors import Stopped, UsageError, UserError
from launch.slurm.address import free_port
from pretrain.run.processes import check_gpus, start
from pretrain.run.rendezvous import _listen, adopt_slurm, join, ranks_from_environment
from pretrain.run.stop import StopFlag

NUMBERS = count(os.getpid() * 20)  # a store of the test before may still hold its port


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port(next(NUMBERS))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(port))
    return port


def test_all_ranks_that_come_have_one_store(port: int) -> None:
    stores: dict[int, Store] = {}

    def come(rank: int) -> None:
        stores[rank] = join(rank, 3, 20, StopFlag())

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].set("word", "said")
    assert [stores[rank].get("word") for rank in (1, 2)] == [b"said", b"said"]


@pytest.mark.parametrize(
    ("rank", "says"),
    [(0, "ranks 1, 2 of 3 did not come"), (2, "rank 2 on {host} cannot reach rank 0 at localhost:{port}")],
)
def test_who_does_not_find_whom_is_said(port: int, rank: int, says: str) -> None:
    with pytest.raises(UserError) as raised:
        join(rank, 3, 1.5, StopFlag())
    assert says.format(host=socket.gethostname(), port=port) in str(raised.value)


def test_a_port_that_another_took_is_named(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(UserError, match=f"rank 0 on .* cannot listen at localhost:{port}"):
            join(0, 2, 1.5, StopFlag())


def test_the_store_listens_at_the_address_that_the_job_meets_at_alone(port: int) -> None:
    host, descriptor = _listen("localhost", port, 2)
    with socket.socket(fileno=descriptor) as server:
        assert server.getsockname() == ("127.0.0.1", port) and host == "127.0.0.1"


CONTRADICTIONS: list[tuple[str, dict[str, str]]] = [
    ("no RANK", {"WORLD_SIZE": "4"}),
    ("no WORLD_SIZE", {"RANK": "1"}),
    *(
        ("a rank and a number of processes are meant", {"RANK": rank, "WORLD_SIZE": size})
        for rank, size in (("0", "two"), ("-1", "2"), ("0", "2.0"))
    ),
    ("begin at 0", {"RANK": "4", "WORLD_SIZE": "4"}),
    *(
        (
            "MASTER_ADDR and MASTER_PORT",
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": port},
        )
        for port in ("x", "", "0", "-1", "65536", "99999", "1.5")
    ),
]


@pytest.mark.parametrize(("says", "given"), CONTRADICTIONS)
def test_variables_that_contradict_each_other_are_refused(says: str, given: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=says):
        ranks_from_environment(given)


def test_a_variable_left_over_from_another_job_ends_in_one_sentence() -> None:
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    for module in ("pretrain", "finetune"):
        done = subprocess.run(
            [sys.executable, "-m", module, "configs/quickstart.yaml"],
            env=env | {"WORLD_SIZE": "8"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: the environment has WORLD_SIZE=8 but no RANK")


@pytest.mark.parametrize("given", [{}, {"WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}])
def test_without_ranks_there_is_one_process(given: dict[str, str]) -> None:
    assert ranks_from_environment(given) == (0, 1)


@pytest.mark.parametrize("stopped", [False, True])
def test_processes_of_any_launcher_wait_no_longer_than_told(
    port: int, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """RANK and WORLD_SIZE as mpirun's scripts set them; the other process never comes."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop = StopFlag()
    if stopped:
        stop._set(signal.SIGTERM, None)
    with pytest.raises(Stopped if stopped else UserError):
        start(timeout=1800, join_timeout=1, stop=stop)


def test_a_signal_ends_the_wait(port: int) -> None:
    stop = StopFlag()
    stop._set(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        join(1, 2, 30, stop)


@pytest.mark.parametrize(
    ("given", "rank"),
    [
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "3"),
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "RANK": "7"}, "7"),
    ],
    ids=["a task of srun", "a batch script", "a shell of srun", "torchrun"],
)
def test_only_tasks_of_srun_take_their_rank_from_slurm(given: dict[str, Any], rank: str | None) -> None:
    environment = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"} | given
    adopt_slurm(environment)
    assert environment.get("RANK") == rank


def test_torchrun_with_more_processes_than_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    check_gpus(4)
    with pytest.raises(UsageError, match=r"4 processes were started on a host that shows 2 GPUs.*start 2"):
        check_gpus(2)
    monkeypatch.setenv("SLURM_STEP_ID", "0")  # srun may show each task its own GPU only
    check_gpus(1)
