"""The processes of a job: which one this is, how they exchange values, how they start and end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_tools.errors import Stopped, UsageError

from .rendezvous import join, started_by_srun
from .stop import StopFlag


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, which computes on `device`. All processes must call its methods together."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """The element-wise sum over all processes, on the CPU, so that it never waits for the device."""
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
        """Return when all processes have called it."""
        self.sum([0.0])

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """A block that a single process leaves where Stopped is raised; of several, others wait for it."""
        try:
            yield
        except Stopped:
            if self.size > 1:
                raise

    def on_all(self, action: Callable[[], Any]) -> None:
        """Run `action` on every process; the error of the lowest rank that fails is raised on all."""
        mine = None
        try:
            action()
        except Exception as raised:
            mine = raised
        for error in self.gather(mine):
            if error is not None:
                raise error

    def on_rank0(self, action: Callable[[], Any]) -> None:
        """Run `action` on rank 0 while the others wait; its error is raised on all processes."""
        self.on_all(lambda: action() if self.rank == 0 else None)


ALONE = World(0, 1, torch.device("cpu"))


def ranks_from_environment() -> tuple[int, int]:
    """(rank, size) from the variables RANK and WORLD_SIZE; (0, 1) without them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start(timeout: int, join_timeout: int = 60, stop: StopFlag | None = None) -> World:
    """Join the other processes of the job and choose this one's device.

    timeout: seconds after which a collective that hangs raises an error. join_timeout: seconds in which
    srun's processes must find each other. Raises as `rendezvous.join` and `check_gpus` do.
    """
    rank, size = ranks_from_environment()
    device = torch.device("cpu")
    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        check_gpus(count)
        # A cluster may show each task only its own GPU.
        local = int(os.environ.get("LOCAL_RANK", 0)) % count
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    limit = timedelta(seconds=timeout)
    if size == 1:
        dist.init_process_group(backend, timeout=limit, store=dist.HashStore(), rank=0, world_size=1)
    elif started_by_srun():
        store = join(rank, size, join_timeout, StopFlag() if stop is None else stop)
        dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=size)
    else:  # torchrun's environment variables say the rest
        dist.init_process_group(backend, timeout=limit)
    return World(rank, size, device)


def check_gpus(count: int) -> None:
    """Raises UsageError if torchrun started more processes on this host than it has GPUs; count: its GPUs.

    NCCL cannot use one GPU for two processes. Under srun nothing is checked, as srun may show each task only
    its own GPU.
    """
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
    """End this process with `code`; for 0 and 75 after all processes have called this.

    With several processes the interpreter does not shut down in its usual way: gloo's threads may abort it
    then, after all work is done, and so turn success into failure.
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
