"""How many CPUs a process may use; often not all CPUs of its machine."""

from __future__ import annotations

import os

import torch

from .folder import log


def available_cpus() -> int:
    """The number of CPUs that this process is bound to, at most those that SLURM gives to each task."""
    bound = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdigit() else bound


def limit_torch_threads(loaders: int) -> None:
    """Let torch use the CPUs that `loaders` loading threads leave free, unless OMP_NUM_THREADS is set."""
    cpus = available_cpus()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cpus - loaders))
    if loaders > cpus:
        log.warning("data.workers=%d, but this process has %d CPUs (--cpus-per-task)", loaders, cpus)
