"""A SLURM job from a recipe: check it, write its batch script into the run folder, queue it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import UsageError
from pretrain import config as configuration
from pretrain.config import Config

from . import container
from .status import QUEUED

TEMPLATE = Path(__file__).parent / "templates/job.sh"
SITES = Path("configs/cluster")
PLAIN = re.compile(r"[\w/.+=@,:-]+")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


@dataclass
class Site:
    """What a file of configs/cluster says; configs/cluster/default.yaml explains the keys."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    interface: str | None = None
    save_seconds: int = 120
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    site = read_site(given.cluster)
    config = check(given)
    folder = config.folder.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.sh"
    script.write_text(batch_script(given, site, config, freeze(Path(given.config), folder)))
    if given.print:
        print(script.read_text(), end="")
        return 0
    job = submit(script, given.after)
    (config.folder / QUEUED).write_text(f"{job}\n")
    print(f"job {job} is queued")
    print(f"script  {script}")
    print(f"log     {folder}/{job}.out")
    print(f"watch   python -m launch status {shlex.quote(str(config.folder))} --follow")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch slurm",
        description="Check a job, write its batch script into the run folder, and queue it.",
    )
    parser.add_argument("config", metavar="CONFIG", help="a recipe")
    parser.add_argument("settings", metavar="key=value", nargs="*", default=[])
    parser.add_argument("--nodes", required=True, metavar="N", help="a number, or MIN-MAX")
    parser.add_argument("--gpus-per-node", required=True, type=int, metavar="G", help="0: on CPUs")
    parser.add_argument("--tasks-per-node", type=int, metavar="T", help="default: one for each GPU")
    parser.add_argument("--cpus-per-task", type=int, metavar="C")
    parser.add_argument("--stage", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--after", metavar="JOB", help="begin when that job has finished well")
    parser.add_argument("--launcher", choices=["srun", "torchrun"], default="srun")
    parser.add_argument("--container", metavar="IMAGE", help="FILE.sif: apptainer; others: pyxis")
    parser.add_argument("--cluster", metavar="NAME", default="default", help="configs/cluster/NAME.yaml")
    for name in ("time", "partition", "account", "qos"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--print", action="store_true", help="print the script, queue nothing")
    given = parser.parse_intermixed_args(list(arguments))
    given.tasks_per_node = given.tasks_per_node or given.gpus_per_node
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", given.nodes):
        raise UsageError(f"--nodes {given.nodes}: a number such as 4, or a range such as 2-4")
    if given.tasks_per_node < 1:
        raise UsageError("--gpus-per-node 0: give --tasks-per-node, the processes of each node")
    return given


def read_site(name: str) -> Site:
    file = Path(name) if name.endswith(".yaml") else SITES / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in SITES.glob("*.yaml")))
        raise UsageError(f"--cluster {name}: {file} is not there; there are: {known or 'none'}")
    site = configuration.read(file, Site)  # type: ignore[type-var]
    for item in site.environment:
        variable, equals, _ = item.partition("=")
        if not equals or not variable.isidentifier():
            raise UsageError(f"{file}: environment: {item!r}: variables are written NAME=value")
        if SECRET.search(variable):
            raise UsageError(
                f"{file}: environment: {variable} would stand in the batch script: export it in the shell "
                f"that submits, and sbatch hands it on"
            )
    return site


def check(given: argparse.Namespace) -> Config:
    """What the job would be refused for, before it waits in a queue. Raises UsageError or DataError."""
    if given.stage == "pretrain":
        config = configuration.load(given.config, given.settings)
    else:
        from finetune.config import FinetuneConfig, load_finetune

        config = configuration.load(given.config, given.settings, FinetuneConfig)
        if given.after:  # the weights that it starts from, and with them the model, are still to come
            if not (config.init and Path(config.init).exists()):
                raise UsageError(f"init={config.init}: no such run: queue the job that trains it first")
        else:
            config = load_finetune(given.config, given.settings)[0]
    from pretrain.inputs import open_inputs
    from pretrain.model.variants import resolve
    from pretrain.split import split_batch

    low, _, high = given.nodes.partition("-")
    for nodes in range(int(low), int(high or low) + 1):
        try:
            split_batch(config.train, nodes * given.tasks_per_node)
        except UsageError as error:
            raise UsageError(f"--nodes {given.nodes}, on {nodes} nodes: {error}") from None
    if not PLAIN.fullmatch(str(config.folder.resolve())):
        raise UsageError(
            f"{config.folder.resolve()}: SLURM cannot write its log there; in the path of a run only "
            f"letters, digits and . _ - + = @ , : are safe: set another run.name or run.dir"
        )
    if not (given.stage == "finetune" and given.after):
        resolve(config.model).grid(config.data.tile_size)
    open_inputs(config)
    return config


def freeze(recipe: Path, folder: Path) -> Path:
    """A copy of the recipe: a job that waits for days runs what was checked when it was queued."""
    content = recipe.read_bytes()
    copy = folder / f"recipe-{hashlib.sha256(content).hexdigest()[:8]}.yaml"
    copy.write_bytes(content)
    return copy


def batch_script(given: argparse.Namespace, site: Site, config: Config, recipe: Path) -> str:
    run = config.folder.resolve()
    parts = {
        "title": f"{config.run.name}, nodes: {given.nodes}, processes on each: {given.tasks_per_node}",
        "directives": "\n".join(f"#SBATCH {option}" for option in _options(given, site, config)),
        "run": str(run),
        "save_seconds": str(site.save_seconds),
        "python": shlex.quote(sys.executable),
        "cwd": shlex.quote(os.getcwd()),
        "setup": "\n".join(_setup(given, site)),
        "srun": " \\\n    ".join(_srun(given, site, config)),
        "command": " \\\n        ".join(_command(given, config, recipe)),
        "max_restarts": str(config.launch.max_restarts),
    }
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], TEMPLATE.read_text())


def _options(given: argparse.Namespace, site: Site, config: Config) -> list[str]:
    tasks = _tasks_per_node(given)
    cpus = given.cpus_per_task and given.cpus_per_task * given.tasks_per_node // tasks
    # Told the number of tasks, SLURM would never again start a job of 2-4 nodes on fewer than it had first.
    number = {"mincpus": tasks * (cpus or 1)} if "-" in given.nodes else {"ntasks-per-node": tasks}
    options = {
        "job-name": re.sub(r"[^\w.-]", "_", config.run.name),
        "nodes": given.nodes,
        **number,
        "cpus-per-task": cpus,
        "gres": f"gpu:{given.gpus_per_node}" if given.gpus_per_node else None,
        **{
            name: getattr(given, name) or getattr(site, name)
            for name in ("time", "partition", "account", "qos")
        },
    }
    return [f"--{name}={value}" for name, value in options.items() if value] + list(site.sbatch)


def _tasks_per_node(given: argparse.Namespace) -> int:
    return 1 if given.launcher == "torchrun" else given.tasks_per_node


def _setup(given: argparse.Namespace, site: Site) -> list[str]:
    pairs = [item.partition("=") for item in site.environment]
    variables = {name: value for name, _, value in pairs}
    if site.interface:
        variables |= {"NCCL_SOCKET_IFNAME": site.interface, "GLOO_SOCKET_IFNAME": site.interface}
    lines = [f"module load {shlex.join(site.modules)}"] if site.modules else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return ["", *lines, *site.setup, ""] if lines or site.setup else [""]


def _srun(given: argparse.Namespace, site: Site, config: Config) -> list[str]:
    options = ["--kill-on-bad-exit=1"]
    if "-" in given.nodes:
        tasks = _tasks_per_node(given)
        options.append(f"--ntasks-per-node={tasks} --ntasks=$((SLURM_NNODES * {tasks}))")
    if given.cpus_per_task:  # since 22.05 srun does not take it from the job
        options.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')
    if given.container:
        options += container.srun_options(given.container, config)
    return [*options, *site.srun]


def _command(given: argparse.Namespace, config: Config, recipe: Path) -> list[str]:
    """The command of each task, a piece for each line."""
    pieces = ['"$python" -m']
    if given.container:  # with a Python of its own
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
    pieces[-1] += f" {given.stage} {shlex.quote(str(recipe))}"
    names = [f"run.dir={config.run.dir}", f"run.name={config.run.name}"]
    settings = [item for item in given.settings if not item.startswith(("run.dir=", "run.name="))]
    return [*pieces, *map(shlex.quote, names + settings)]


def submit(script: Path, after: str | None) -> str:
    """Queue `script`; returns the job id."""
    if not shutil.which("sbatch"):
        raise UsageError(
            f"sbatch is not on this machine; the script is written to {script}, and --print shows it"
        )
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    # Inside a job, its own variables would be taken for options of the new one.
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"
    }
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], env=keep, capture_output=True, text=True
    )
    if done.returncode:
        raise UsageError(f"sbatch refused {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
