"""The processes of a job: which one this is, how they exchange values, how they start and end."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_tools.errors import DataError, DivergedError, Stopped, UsageError, UserError, flushed

from .lost import FailedElsewhere
from .rendezvous import join, ranks_from_environment, started_by_srun
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
        """The value of every process, in rank order, as JSON leaves it: a tuple comes as a list."""
        if self.size == 1:
            return [json.loads(json.dumps(value))]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, torch.nn.functional.pad(data, (0, longest - len(data))))
        parts = zip(texts, lengths, strict=True)
        return [json.loads(text[: int(length)].numpy().tobytes()) for text, length in parts]

    def gather_errors(self, mine: Exception | None) -> list[Exception]:
        """The errors of the processes that have one, in rank order.

        Those of others are of the same kind if they are UserErrors, else FailedElsewhere.
        """
        told = self.gather(mine and [type(mine).__name__, str(mine)])
        own = [
            mine if rank == self.rank else _error_of(rank, *text) for rank, text in enumerate(told) if text
        ]
        return [error for error in own if error is not None]

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
        for error in self.gather_errors(mine):
            raise error

    def on_rank0(self, action: Callable[[], Any]) -> None:
        """Run `action` on rank 0 while the others wait; its error is raised on all processes."""
        self.on_all(lambda: action() if self.rank == 0 else None)


ALONE = World(0, 1, torch.device("cpu"))


def _error_of(rank: int, kind: str, text: str) -> Exception:
    """The error of another process."""
    known = {error.__name__: error for error in (UserError, UsageError, DataError, DivergedError)}
    if kind == "Stopped":
        return Stopped(text)
    if kind in known:
        return known[kind](text, shared=True)
    return FailedElsewhere(f"rank {rank} failed: {kind}: {text}")


def start(timeout: int, join_timeout: int = 60, stop: StopFlag | None = None) -> World:
    """Join the other processes of the job and choose this one's device.

    timeout: seconds after which a collective that hangs raises an error. join_timeout: seconds in which the
    processes must find each other. Raises as `rendezvous.join` and `check_gpus` do.
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
    else:
        store = join(rank, size, join_timeout, StopFlag() if stop is None else stop)
        dist.init_process_group(backend, timeout=limit, store=store, rank=rank, world_size=size)
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

    The interpreter does not shut down in its usual way: gloo's threads may abort it then, after all work is
    done, and so turn success into failure; and W&B would wait until all is uploaded.
    """
    gc.collect()
    if code in (0, 75):
        world.barrier()
        dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        with flushed(stream):
            pass
    os._exit(code)
