"""How the processes of a job find each other, whoever started them.

torchrun sets RANK, WORLD_SIZE and so on. Under srun they are derived from the variables that SLURM sets for
each task; address and port come from the batch script (launch/slurm/address.py).
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from data_tools.errors import Stopped, UsageError, UserError

from .stop import StopFlag

if TYPE_CHECKING:
    from torch.distributed import Store

RETRY_SECONDS = 0.5  # between two attempts to reach rank 0


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Give a task of srun the variables that torchrun would give it: RANK, LOCAL_RANK and WORLD_SIZE.

    Only tasks of srun have SLURM_STEP_ID; a batch script has SLURM_PROCID too. Nothing changes for a single
    task, and for a process that torchrun started.
    """
    if "RANK" in environment or "SLURM_STEP_ID" not in environment:
        return
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if size > 1:
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["WORLD_SIZE"] = str(size)


def slurm_job(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """{"job": id of this SLURM job, "restart": how often it was restarted}; empty outside of SLURM."""
    job = environment.get("SLURM_JOB_ID")
    return {"job": job, "restart": int(environment.get("SLURM_RESTART_COUNT", "0"))} if job else {}


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, size) from the variables RANK and WORLD_SIZE; (0, 1) without them.

    Raises UsageError if they contradict each other or do not say where the processes meet.
    """
    given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
    if given in ({}, {"WORLD_SIZE": "1"}, {"RANK": "0"}):
        return 0, 1
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    todo = "start the processes by torchrun or python -m launch slurm, or unset these variables"
    if len(given) < 2:
        missing = ({"RANK", "WORLD_SIZE"} - given.keys()).pop()
        raise UsageError(f"the environment has {told} but no {missing}: {todo}")
    if not all(value.isascii() and value.isdigit() for value in given.values()):
        raise UsageError(f"the environment has {told}: a rank and a number of processes are meant: {todo}")
    rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    if rank >= size:
        raise UsageError(f"the environment has {told}: the ranks of {size} processes begin at 0: {todo}")
    port = environment.get("MASTER_PORT", "")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
    if size > 1 and not (environment.get("MASTER_ADDR") and is_port):
        raise UsageError(
            f"the environment has {told}, but MASTER_ADDR and MASTER_PORT do not say where they meet (the "
            f"first node and a free port): {todo}"
        )
    return rank, size


def join(rank: int, size: int, timeout: float, stop: StopFlag | None) -> Store:
    """The store through which the processes find each other; returns when all have connected.

    Raises UserError that names rank, host and address after `timeout` seconds, and Stopped if `stop` is set.
    """
    from torch.distributed import PrefixStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout
    # So that another job's store at this port, or an earlier life's, is not mistaken for this one's.
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = "{job}.{restart}".format(**slurm_job()) if slurm_job() else "job"
    name = f"{name}.{life}"
    store = PrefixStore(name, _connect(rank, size, address, port, deadline, stop))
    _wait_for_all_ranks(store, rank, size, f"{address}:{port}", deadline, stop)
    store.set_timeout(timedelta(seconds=timeout))
    return store


def _connect(rank: int, size: int, address: str, port: int, deadline: float, stop: StopFlag | None) -> Store:
    from torch.distributed import TCPStore

    here = f"rank {rank} on {socket.gethostname()}"
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # torchrun has a store already
        try:
            host, listening = _listen(address, port, size)
            return TCPStore(host, port, size, True, wait_for_workers=False, master_listen_fd=listening)
        except (OSError, RuntimeError) as error:  # among them DistNetworkError
            raise UserError(f"{here} cannot listen at {address}:{port}: {_first_line(error)}") from None
    reason = ""
    while time.monotonic() < deadline:
        _raise_if_stopped(stop)
        try:
            host = ipv4(address)
            socket.create_connection((host, port), timeout=5).close()
            patience = timedelta(seconds=max(1.0, deadline - time.monotonic()))
            return TCPStore(host, port, size, is_master=False, timeout=patience, wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            reason = _first_line(error)
            time.sleep(RETRY_SECONDS)
    raise UserError(
        f"{here} cannot reach rank 0 at {address}:{port}: {reason}; is the name the first node's, and the "
        f"network interface the right one (interface: in configs/cluster)?"
    )


def _listen(address: str, port: int, size: int) -> tuple[str, int]:
    """(an address of this host, the descriptor of a socket that listens there for other hosts).

    It listens on the network of `address` alone; on all networks only where a name means this host itself (as
    /etc/hosts may say) or no address of this host, but other hosts may resolve it otherwise.
    """
    host = ipv4(address)
    alone = os.environ.get("SLURM_STEP_NUM_NODES") == "1" or os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    at = host if alone or address in (host, "localhost") or not host.startswith("127.") else ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for local in dict.fromkeys((at, "")):
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((local, port))
            server.listen(4096)
        except OSError as error:
            server.close()
            if local and error.errno == errno.EADDRNOTAVAIL:
                continue
            raise
        return local or "localhost", server.detach()
    raise AssertionError("not reached: the loop returns or raises")


def _wait_for_all_ranks(
    store: Store, rank: int, size: int, address: str, deadline: float, stop: StopFlag | None
) -> None:
    """Return when every rank has called this."""
    store.set(f"here-{rank}", socket.gethostname())
    expected = [f"here-{other}" for other in range(size)]
    while rank == 0 and not store.check(expected):
        _raise_if_stopped(stop)
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
        _raise_if_stopped(stop)
        # 2 s more, so that rank 0, which knows who is missing, fails first.
        if time.monotonic() > deadline + 2:
            raise UserError(f"rank {rank} on {socket.gethostname()} waits at {address}: not all ranks came")
        time.sleep(0.05)


def ipv4(name: str) -> str:
    """The IPv4 address of `name` if it has one (its IPv6 address often does not work), else the first one."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return next((str(item[4][0]) for item in found if item[0] == socket.AF_INET), str(found[0][4][0]))


def _raise_if_stopped(stop: StopFlag | None) -> None:
    if stop:
        raise Stopped


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().splitlines()[0].rstrip(".")


def started_by_srun() -> bool:
    """Whether this process is a task of srun, and not a child of torchrun."""
    return "SLURM_STEP_ID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
