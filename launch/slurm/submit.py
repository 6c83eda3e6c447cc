"""A SLURM job from a recipe: check it, write its batch script into the run folder, queue it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_tools.errors import UsageError
from pretrain.config import loading
from pretrain.config.schema import Config

from .requeue import QUEUED
from .script import batch_script
from .site import read_site

PLAIN = re.compile(r"[\w/.+=@,:-]+")


def main(arguments: Sequence[str]) -> int:
    """Check, write and queue a job, or with --print only check and write it. Returns the exit code."""
    given = parse(arguments)
    site = read_site(given.cluster)
    config = check(given)
    folder = config.folder.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.sh"
    script.write_text(batch_script(given, site, config, copy_recipe(Path(given.config), folder)))
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
    """The options of `python -m launch slurm`; UsageError for impossible numbers."""
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
    parser.add_argument("--after", metavar="JOB", help="start when that job has succeeded")
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


def check(given: argparse.Namespace) -> Config:
    """The job's configuration, checked for mistakes that would end the job after hours in the queue.

    Raises UsageError or DataError.
    """
    if given.stage == "pretrain":
        config: Config = loading.load(given.config, given.settings)
    else:
        from finetune.config import FinetuneConfig, load_finetune

        config = loading.load(given.config, given.settings, FinetuneConfig)
        if given.after:  # the weights that it starts from do not exist yet, so the model is not known
            if not (config.init and Path(config.init).exists()):
                raise UsageError(f"init={config.init}: no such run: queue the job that trains it first")
        else:
            config = load_finetune(given.config, given.settings)[0]
    from pretrain.config.batch_split import split_batch
    from pretrain.inputs import open_inputs
    from pretrain.model.variants import resolve

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


def copy_recipe(recipe: Path, folder: Path) -> Path:
    """Copy the recipe, so that a job that waits for days runs what was checked; returns the copy."""
    content = recipe.read_bytes()
    copy = folder / f"recipe-{hashlib.sha256(content).hexdigest()[:8]}.yaml"
    copy.write_bytes(content)
    return copy


def submit(script: Path, after: str | None) -> str:
    """Queue `script`, to start once job `after` (if any) has succeeded; returns the job id.

    Raises UsageError where there is no sbatch or it refuses.
    """
    if not shutil.which("sbatch"):
        raise UsageError(
            f"sbatch is not on this machine; the script is written to {script}, and --print shows it"
        )
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    # sbatch reads options from SLURM's variables, which inside a job are set for that job.
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"
    }
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], env=keep, capture_output=True, text=True
    )
    if done.returncode:
        raise UsageError(f"sbatch refused {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
