"""A SLURM job from a recipe: check it, write its batch script into the run folder, queue it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data_tools.errors import Parser, UsageError, flushed, print_line
from pretrain.config import loading
from pretrain.config.command_line import parse_arguments
from pretrain.config.schema import Config
from pretrain.run.lock import LOCK_NAME, LOCK_PATIENCE, take_lock

from .checks import check_settings, check_start
from .queue import RECORD, SCRIPT, ask, in_queue
from .quoting import one_line
from .requeue import seconds
from .script import SITE_OPTIONS, batch_script
from .site import Site, find_site, read_site

# Reasons for which SLURM lets a job wait until somebody changes the job or the cluster.
BEYOND_LIMITS = re.compile(r"Partition|BadConstraints|Invalid|MaxMem|.*PerJob")
# Of another job that this shell was in, which the new one would take for its own.
FOREIGN = re.compile(
    r"(SLURM|SBATCH|TORCHELASTIC)_(?!CONF$)|(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
)


def main(arguments: Sequence[str]) -> int:
    """Check, write and queue a job, or with --print only check and show it. Returns the exit code."""
    given = parse(arguments)
    recipe = Path(loading.find_recipe(given.config))
    site_file = find_site(given.cluster, recipe)
    site = read_site(site_file)
    config, inputs, tracking = check_settings(given)
    notes = [f"cluster {site_file.resolve()}", *fill_in(given, site, config), *tracking]
    if given.print:
        with flushed(sys.stdout, needed=True):
            sys.stdout.write(batch_script(given, site, config, recipe.resolve()))
        for note in notes:
            print_line(note, error=True)
        return 0
    run, content = config.folder.resolve(), recipe.read_bytes()
    # A copy, so that a job that waits for days runs what was checked.
    copy = run / f"slurm/recipe-{hashlib.sha256(content).hexdigest()[:8]}.yaml"
    script, record = run / SCRIPT, run / RECORD
    text = batch_script(given, site, config, copy)
    with undone_on_error(run / "slurm", [copy, script, record]):
        waiting = check_start(given, config, inputs)
        copy.write_bytes(content)
        script.write_text(text, encoding="utf-8")
        job = submit(script, given)
        try:
            record.write_text("".join(f"{known}\n" for known in [*waiting, job]), encoding="utf-8")
        except OSError:
            ask("scancel", job)
            raise
    print_line(f"job {job} is queued")
    print_line(f"script  {script}")
    print_line(f"log     {run}/slurm/{job}.out")
    for note in notes:
        print_line(note)
    print_line(f"watch   python -m launch status {shlex.quote(str(config.folder))} --follow")
    for entry in in_queue([run])[run]:
        if entry.job == job and BEYOND_LIMITS.match(entry.reason):
            print_line(
                f"warning {entry}: SLURM does not start it as things are: ask for less, or another partition"
            )
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m launch slurm`; UsageError for values that no job can have."""
    parser = Parser(
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
    given = parse_arguments(parser, arguments, Config)
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
        limit = seconds(given.time or "UNLIMITED")
    except ValueError:
        raise UsageError(f"--time {given.time}: minutes, hours:minutes:seconds or days-hours") from None
    if limit <= site.save_seconds:
        raise UsageError(
            f"--time {given.time}: the job is told to save {site.save_seconds} s before that, so that it "
            f"would do no step: give it more time, or lower save_seconds in the cluster's file"
        )
    return [note]


@contextmanager
def undone_on_error(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Make and lock `folder`; after an error in the block, it and `files` are as they were before.

    Raises UsageError where they cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before: dict[Path, bytes | None] = {}
    with ExitStack() as held:  # until all is undone
        try:
            folder.mkdir(parents=True, exist_ok=True)
            own = folder / LOCK_NAME
            before = {} if own.exists() else {own: None}
            held.enter_context(take_lock(folder, LOCK_PATIENCE))
            before |= {file: file.read_bytes() if file.exists() else None for file in files}
            yield
        except BaseException as error:
            with suppress(OSError):
                for file, content in before.items():
                    if content is None:
                        file.unlink(missing_ok=True)
                    else:
                        file.write_bytes(content)
                for path in made:
                    path.rmdir()
            if isinstance(error, OSError):
                raise UsageError(
                    f"{folder}: it cannot be written: {error.strerror}: check run.dir and run.name, and who "
                    f"may write there"
                ) from None
            raise


def submit(script: Path, given: argparse.Namespace) -> str:
    """Queue `script`, to start once the job of --after (if any) has succeeded; returns the job id.

    Raises UsageError if sbatch refuses.
    """
    dependency = [f"--dependency=afterok:{given.after}", "--kill-on-invalid-dep=yes"] if given.after else []
    keep = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)],
        env=keep,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        cpus = given.cpus_per_task * given.tasks_per_node
        raise UsageError(
            f"sbatch refused the job: {' '.join(done.stderr.split())}; each of its nodes needs "
            f"{given.gpus_per_node} GPUs and {cpus or 'some'} CPUs (--cpus-per-task, data.workers)"
        )
    return done.stdout.strip().partition(";")[0]
