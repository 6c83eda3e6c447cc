"""The processes of a job: who this one is, how they agree on numbers, how they end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_tools.errors import UsageError

from .rendezvous import join, started_by_srun
from .stop import StopFlag


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, computing on `device`."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """The element-wise sum over all processes. Runs on the CPU, so it never waits for the device."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in rank order."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        self.sum([0.0])

    def together(self, action: Callable[[], Any]) -> None:
        """Run `action` on every process; the error of the first one that fails is raised on all."""
        mine = None
        try:
            action()
        except Exception as raised:
            mine = raised
        for error in self.gather(mine):
            if error is not None:
                raise error

    def rank0_first(self, action: Callable[[], Any]) -> None:
        """Run `action` on rank 0 while the others wait; an error there is raised on every process."""
        self.together(lambda: action() if self.rank == 0 else None)


ALONE = World(0, 1, torch.device("cpu"))


def ranks_from_environment() -> tuple[int, int]:
    """(rank, size) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start(timeout: int, join_timeout: int = 60, stop: StopFlag | None = None) -> World:
    """Join the job. `timeout`: seconds after which a collective that hangs raises an error; join_timeout:
    seconds for srun's processes to find each other. Raises as `rendezvous.join` does."""
    rank, size = ranks_from_environment()
    device = torch.device("cpu")
    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        check_gpus(count)
        # A site may show each task its own GPU only.
        local = int(os.environ.get("LOCAL_RANK", 0)) % count
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    meeting = {}  # torchrun's, from the environment
    if size == 1:
        meeting = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    elif started_by_srun():
        store = join(rank, size, join_timeout, StopFlag() if stop is None else stop)
        meeting = {"store": store, "rank": rank, "world_size": size}
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **meeting)
    return World(rank, size, device)


def check_gpus(count: int) -> None:
    """Refuse more processes of torchrun on this host than the GPUs that it shows to each of them: NCCL cannot
    share one. (srun may show each task its own GPU only, so there the count says nothing.)"""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if processes > count and not started_by_srun():
        gpus = "1 GPU" if count == 1 else f"{count} GPUs"
        raise UsageError(
            f"{processes} processes were started on a host that shows {gpus}, and each needs one of its own: "
            f"start {count} (torchrun --nproc-per-node={count}), or compute on the CPU with "
            "CUDA_VISIBLE_DEVICES= in the environment",
            shared=True,
        )


def leave(world: World, code: int) -> NoReturn:
    """End this process with `code`, after the others have come this far where they still can.

    gloo's threads may abort the interpreter while it shuts down, after all work is done, and turn success
    into failure; so with several processes the interpreter's own shutdown is left out.
    """
    gc.collect()
    if world.size > 1 and code in (0, 75):
        world.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if world.size > 1:
        os._exit(code)
    dist.destroy_process_group()
    sys.exit(code)
