"""A SLURM job from a recipe: check it, write its batch script into the run folder, queue it."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data_tools.errors import UsageError, printable
from pretrain.config import loading

from .checks import check_settings, check_start
from .options import fill_in, parse
from .queue import RECORD, SCRIPT, ask, in_queue
from .script import batch_script
from .site import find_site, read_site


def main(arguments: Sequence[str]) -> int:
    """Check, write and queue a job, or with --print only check and show it. Returns the exit code."""
    given = parse(arguments)
    recipe = Path(loading.find_recipe(given.config))
    site_file = find_site(given.cluster, recipe)
    site = read_site(site_file)
    config, inputs = check_settings(given)
    notes = [f"cluster {printable(str(site_file.resolve()))}", *fill_in(given, site, config)]
    if given.print:
        print(batch_script(given, site, config, recipe.resolve()), end="")
        print("\n".join(notes), file=sys.stderr)
        return 0
    check_start(given, config, inputs)
    run, content = config.folder.resolve(), recipe.read_bytes()
    # A copy, so that a job that waits for days runs what was checked.
    copy = run / f"slurm/recipe-{hashlib.sha256(content).hexdigest()[:8]}.yaml"
    script, record = run / SCRIPT, run / RECORD
    text = batch_script(given, site, config, copy)
    waiting = [entry.job for entry in in_queue([run])[run]]
    with undone_on_error(run / "slurm", [copy, script, record]):
        copy.write_bytes(content)
        script.write_text(text, encoding="utf-8")
        job = submit(script, given)
        try:
            record.write_text("".join(f"{known}\n" for known in [*waiting, job]), encoding="utf-8")
        except OSError:
            ask("scancel", job)
            raise
    print(f"job {job} is queued")
    print(f"script  {script}")
    print(f"log     {run}/slurm/{job}.out")
    print("\n".join(notes))
    print(f"watch   python -m launch status {shlex.quote(str(config.folder))} --follow")
    return 0


@contextmanager
def undone_on_error(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Make `folder`; after an error in the block, it and `files` are as they were before.

    Raises UsageError where they cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = {file: file.read_bytes() if file.exists() else None for file in files}
        yield
    except BaseException as error:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise UsageError(
                f"{folder}: it cannot be written: {error.strerror}: check run.dir and run.name, and who may "
                f"write there"
            ) from None
        raise


def submit(script: Path, given: argparse.Namespace) -> str:
    """Queue `script`, to start once the job of --after (if any) has succeeded; returns the job id.

    Raises UsageError if sbatch refuses.
    """
    dependency = [f"--dependency=afterok:{given.after}", "--kill-on-invalid-dep=yes"] if given.after else []
    # sbatch reads options from SLURM's variables, which inside a job are set for that job.
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"
    }
    done = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], env=keep, capture_output=True, text=True
    )
    if done.returncode:
        cpus = given.cpus_per_task * given.tasks_per_node
        raise UsageError(
            f"sbatch refused the job: {' '.join(done.stderr.split())}; each of its nodes has "
            f"{given.gpus_per_node} GPUs and {cpus or 'any number of'} CPUs (--cpus-per-task, data.workers)"
        )
    return done.stdout.strip().partition(";")[0]
