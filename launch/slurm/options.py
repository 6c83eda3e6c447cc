"""The options of `python -m launch slurm`, and what is taken where one is not given."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from data_tools.errors import UsageError
from pretrain.config.schema import Config

from .quoting import one_line
from .requeue import seconds
from .script import SITE_OPTIONS
from .site import Site

UNLIMITED = ("UNLIMITED", "INFINITE")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m launch slurm`; UsageError for values that no job can have."""
    parser = argparse.ArgumentParser(
        prog="python -m launch slurm",
        description="Check a job, write its batch script into the run folder, and queue it.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a recipe")
    parser.add_argument("settings", metavar="key=value", nargs="*", default=[])
    parser.add_argument("--nodes", required=True, metavar="N", help="a number, or MIN-MAX")
    parser.add_argument("--gpus-per-node", required=True, type=int, metavar="G", help="0: on CPUs")
    parser.add_argument("--tasks-per-node", type=int, metavar="T", help="default: one for each GPU")
    text = "default: data.workers and one more; 0: as the cluster has it"
    parser.add_argument("--cpus-per-task", type=int, metavar="C", help=text)
    parser.add_argument(
        "--mem", metavar="SIZE", help="memory of each node, such as 200G; default: the cluster's"
    )
    parser.add_argument("--stage", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--after", metavar="JOB", help="start when that job has succeeded")
    parser.add_argument("--launcher", choices=["srun", "torchrun"], default="srun")
    parser.add_argument("--container", metavar="IMAGE", help="FILE.sif: apptainer; others: pyxis")
    text = (
        "NAME: configs/cluster/NAME.yaml near the recipe, in the working folder, or the project's; or a file"
    )
    parser.add_argument("--cluster", metavar="NAME|FILE", default="default", help=text)
    parser.add_argument("--time", help="such as 1-00:00:00")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--print", action="store_true", help="only show the script: write and queue nothing")
    given = parser.parse_intermixed_args(list(arguments))
    low, _, high = given.nodes.partition("-")
    if not re.fullmatch(r"[1-9][0-9]*(-[1-9][0-9]*)?", given.nodes) or int(low) > int(high or low):
        raise UsageError(f"--nodes {given.nodes}: a number such as 4, or a range such as 2-4")
    for name, least in (("gpus_per_node", 0), ("tasks_per_node", 1), ("cpus_per_task", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")
    given.tasks_per_node = given.tasks_per_node or given.gpus_per_node
    if not given.tasks_per_node:
        raise UsageError("--gpus-per-node 0: give --tasks-per-node, the processes of each node")
    if given.after and not re.fullmatch(r"[0-9]+", given.after):
        raise UsageError(f"--after {given.after}: the id of one job, such as 4711")
    return given


def fill_in(given: argparse.Namespace, site: Site, config: Config) -> list[str]:
    """Take what the command line leaves open from the site, the number of CPUs else from the recipe.

    Returns sentences about what was taken. Raises UsageError for values that SLURM cannot use.
    """
    for name in (*SITE_OPTIONS, "cpus_per_task"):
        if getattr(given, name) is None:
            setattr(given, name, getattr(site, name))
        one_line(f"--{name}", str(getattr(given, name) or ""))
    note = f"cpus    {given.cpus_per_task or 'those that the cluster gives'} for each process"
    if given.cpus_per_task is None:
        workers = config.data.workers
        given.cpus_per_task = workers + 1
        note = f"cpus    {workers + 1} for each process: data.workers={workers} and its own thread"
    if given.mem and not re.fullmatch(r"[0-9]+[KMGT]?", given.mem):
        raise UsageError(f"--mem {given.mem}: a size such as 200G")
    try:
        short = (
            given.time and given.time.upper() not in UNLIMITED and seconds(given.time) <= site.save_seconds
        )
    except ValueError:
        raise UsageError(
            f"--time {given.time}: minutes, hours:minutes:seconds or days-hours:minutes:seconds"
        ) from None
    if short:
        raise UsageError(
            f"--time {given.time}: the job is told to save {site.save_seconds} s before that, so that it "
            f"would do no step: give it more time, or lower save_seconds in the cluster's file"
        )
    return [note]
