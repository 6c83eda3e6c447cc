"""The batch script of a job."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from pretrain.config.schema import Config

from . import container
from .quoting import quote
from .site import Site

TEMPLATE = Path(__file__).parent / "job.sh"
SITE_OPTIONS = ("time", "partition", "account", "qos", "mem")  # the command line overrides the site's


def batch_script(given: argparse.Namespace, site: Site, config: Config, recipe: Path) -> str:
    """The text of job.sh. given: the options of `python -m launch slurm`; recipe: what the job runs."""
    run = config.folder.resolve()  # of which `check` has made sure that it needs no quotes
    parts = {
        "title": f"{run.name}, nodes: {given.nodes}, processes on each: {given.tasks_per_node}",
        "directives": "\n".join(f"#SBATCH {quote(option)}" for option in _options(given, site, run.name)),
        "run": str(run),
        "save_seconds": str(site.save_seconds),
        "python": quote(sys.executable),
        "cwd": quote(os.getcwd()),
        "setup": "\n".join(_setup(site)),
        "srun": " \\\n    ".join(_srun(given, site, config)),
        "command": " \\\n        ".join(_command(given, config, recipe)),
        "max_restarts": str(config.launch.max_restarts),
    }
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _options(given: argparse.Namespace, site: Site, name: str) -> list[str]:
    tasks = _tasks_per_node(given)
    cpus = given.cpus_per_task * given.tasks_per_node // tasks
    # For a range of nodes no number of tasks: with one, SLURM would not restart the job on fewer nodes.
    number = {"mincpus": tasks * (cpus or 1)} if "-" in given.nodes else {"ntasks-per-node": tasks}
    options = {
        "job-name": re.sub(r"[^\w.-]", "_", name),
        "nodes": given.nodes,
        **number,
        "cpus-per-task": cpus,
        "gres": f"gpu:{given.gpus_per_node}" if given.gpus_per_node else None,
        **{name: getattr(given, name) for name in SITE_OPTIONS},
    }
    return [f"--{name}={value}" for name, value in options.items() if value] + list(site.sbatch)


def _tasks_per_node(given: argparse.Namespace) -> int:
    return 1 if given.launcher == "torchrun" else given.tasks_per_node


def _setup(site: Site) -> list[str]:
    pairs = [item.partition("=") for item in site.environment]
    variables = {name: value for name, _, value in pairs}
    if site.interface:
        variables |= {"NCCL_SOCKET_IFNAME": site.interface, "GLOO_SOCKET_IFNAME": site.interface}
    lines = [f"module load {' '.join(map(quote, site.modules))}"] if site.modules else []
    lines += [f"export {name}={quote(value)}" for name, value in variables.items()]
    return ["", *lines, *site.setup, ""] if lines or site.setup else [""]


def _srun(given: argparse.Namespace, site: Site, config: Config) -> list[str]:
    options = ["--kill-on-bad-exit=1"]
    if "-" in given.nodes:
        tasks = _tasks_per_node(given)
        options.append(f"--ntasks-per-node={tasks} --ntasks=$((SLURM_NNODES * {tasks}))")
    if given.cpus_per_task:  # since SLURM 22.05 srun does not inherit it from the job
        options.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')
    if given.container:
        options += container.srun_options(given.container, config)
    return [*options, *map(quote, site.srun)]


def _command(given: argparse.Namespace, config: Config, recipe: Path) -> list[str]:
    """The command of each task, one piece a line."""
    pieces = ['"$python" -m']
    if given.container:  # which has its own Python
        prefix = container.command_prefix(given.container, config, bool(given.gpus_per_node))
        pieces = [f"{prefix}python -m"]
    if given.launcher == "torchrun":
        pieces[0] += ' torch.distributed.run --nnodes="$SLURM_NNODES"'
        pieces += [
            f"--nproc-per-node={given.tasks_per_node}",
            '--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"',
            '--rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
            "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m",
        ]
    pieces[-1] += f" {given.stage} {quote(str(recipe))}"
    names = [f"run.dir={config.run.dir}", f"run.name={config.run.name}"]
    settings = [item for item in given.settings if not item.startswith(("run.dir=", "run.name="))]
    return [*pieces, *map(quote, names + settings)]
