"""The CPUs that a process really has, which are seldom all of its machine."""

from __future__ import annotations

import os

import torch

from .folder import log


def available() -> int:
    """CPUs of this process: those it is bound to, and no more than SLURM gave to each task."""
    bound = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdigit() else bound


def share_out(loaders: int) -> None:
    """Leave to computing the CPUs that the loader threads do not take, unless OMP_NUM_THREADS is set."""
    cpus = available()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpus - loaders))
    if loaders > cpus:
        log.warning("data.workers=%d, but this process has %d CPUs (--cpus-per-task)", loaders, cpus)
