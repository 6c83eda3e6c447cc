"""How the processes of a job find each other.

torchrun sets RANK, WORLD_SIZE and the rest. Under srun they follow from what SLURM sets for each task,
address and port from the batch script (launch/address.py).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from data_tools.errors import UserError

from .stop import StopFlag

if TYPE_CHECKING:
    from torch.distributed import Store

AGAIN = 0.5


class Stopped(Exception):
    """A signal asked this process to stop before it had found the others."""


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give a task of srun the variables that torchrun would give it.

    A batch script has SLURM_PROCID too; only tasks of srun have SLURM_STEP_ID. One that stands alone is left
    as it is, and so is what torchrun started.
    """
    if "RANK" in environment or "SLURM_STEP_ID" not in environment:
        return
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if size > 1:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["WORLD_SIZE"] = str(size)


def life(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Which life of which SLURM job a process belongs to; empty elsewhere."""
    job = environment.get("SLURM_JOB_ID")
    return {"job": job, "restart": int(environment.get("SLURM_RESTART_COUNT", "0"))} if job else {}


def join(rank: int, size: int, timeout: float, stop: StopFlag | None) -> Store:
    """The store of a job that srun started, when all of its processes are there.

    Raises UserError after `timeout` seconds, naming rank, host and address, and Stopped when a signal comes.
    """
    from torch.distributed import PrefixStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UserError(
            f"rank {rank} of {size} on {socket.gethostname()}: MASTER_ADDR and MASTER_PORT are not set; "
            f"start the job by python -m launch slurm, or set them to the first node and a free port"
        ) from None
    deadline = time.monotonic() + timeout
    # Another job's store behind this port would not know our keys.
    name = "{job}.{restart}".format(**life()) if life() else "job"
    store = PrefixStore(name, _connect(rank, size, address, port, deadline, stop))
    _roll_call(store, rank, size, f"{address}:{port}", deadline, stop)
    store.set_timeout(timedelta(seconds=timeout))
    return store


def _connect(rank: int, size: int, address: str, port: int, deadline: float, stop: StopFlag | None) -> Store:
    from torch.distributed import TCPStore

    here = f"rank {rank} on {socket.gethostname()}"
    if rank == 0:
        try:
            return TCPStore("localhost", port, size, is_master=True, wait_for_workers=False)
        except RuntimeError as error:  # among them DistNetworkError
            raise UserError(f"{here} cannot listen at {address}:{port}: {_short(error)}") from None
    reason = ""
    while time.monotonic() < deadline:
        _leave_if(stop)
        try:
            host = ipv4(address)
            socket.create_connection((host, port), timeout=5).close()
            patience = timedelta(seconds=max(1.0, deadline - time.monotonic()))
            return TCPStore(host, port, size, is_master=False, timeout=patience, wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            reason = _short(error)
            time.sleep(AGAIN)
    raise UserError(
        f"{here} cannot reach rank 0 at {address}:{port}: {reason}; is the name the first node's, and the "
        f"network interface the right one (interface: in configs/cluster)?"
    )


def _roll_call(
    store: Store, rank: int, size: int, address: str, deadline: float, stop: StopFlag | None
) -> None:
    """Wait until every rank has said that it is here."""
    store.set(f"here-{rank}", socket.gethostname())
    expected = [f"here-{other}" for other in range(size)]
    while rank == 0 and not store.check(expected):
        _leave_if(stop)
        if time.monotonic() > deadline:
            missing = [str(other) for other in range(size) if not store.check([f"here-{other}"])]
            raise UserError(
                f"rank 0 on {socket.gethostname()} waits at {address}, and rank{'s' * (len(missing) > 1)} "
                f"{', '.join(missing[:8])}{' ...' * (len(missing) > 8)} of {size} did not come"
            )
        time.sleep(0.05)
    if rank == 0:
        store.set("all-here", "")
    while not store.check(["all-here"]):
        _leave_if(stop)
        # Rank 0 says who is missing; it must have the time to.
        if time.monotonic() > deadline + 2:
            raise UserError(f"rank {rank} on {socket.gethostname()} waits at {address}: not all ranks came")
        time.sleep(0.05)


def ipv4(name: str) -> str:
    """The IPv4 address of `name` where it has one: a name's IPv6 address often leads nowhere."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return next((str(item[4][0]) for item in found if item[0] == socket.AF_INET), str(found[0][4][0]))


def _leave_if(stop: StopFlag | None) -> None:
    if stop:
        raise Stopped


def _short(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().splitlines()[0].rstrip(".")


def started_by_srun() -> bool:
    return "SLURM_STEP_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
