"""Processes that srun starts find each other, or say in the time they are given who does not find whom."""

from __future__ import annotations

import os
import signal
import socket
import threading
from itertools import count
from typing import Any

import pytest
from torch.distributed import Store

from data_tools.errors import Stopped, UsageError, UserError
from launch.slurm.address import free_port
from pretrain.run.processes import check_gpus
from pretrain.run.rendezvous import adopt_slurm, join
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
