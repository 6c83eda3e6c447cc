"""What a job would be refused for after days in the queue is refused when it is queued."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import DataError, UsageError, counted
from pretrain.config import loading
from pretrain.config.schema import Config
from pretrain.run.folder import GOING_ON, RunFolder
from pretrain.run.restart import check_not_lost
from pretrain.run.wandb_environment import check_tracking

from .container import check_image
from .queue import NO_SUCH_JOB, SILENT, in_queue, state_of

if TYPE_CHECKING:
    from pretrain.inputs import Inputs

PLAIN = re.compile(r"[\w/.+=@,:-]+")
NEVER_SUCCEEDS = (
    *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"),
    NO_SUCH_JOB,
)


def check_settings(given: argparse.Namespace) -> tuple[Config, Inputs, list[str]]:
    """The job's configuration, its data, and notes; checked for what would end it after days in the queue.

    Raises UsageError or DataError.
    """
    if given.stage == "pretrain":
        config: Config = loading.load(given.config, given.settings)
    else:
        from finetune.config import FinetuneConfig, load_begun, load_finetune

        config = loading.load(given.config, given.settings, FinetuneConfig)
        if given.after:  # the weights that it starts from do not exist yet, so the model is not known
            if not (config.init and Path(config.init).exists()):
                raise UsageError(f"init={config.init}: no such run: queue the job that trains it first")
        else:
            begun = load_begun(given.config, given.settings)
            config = begun or load_finetune(given.config, given.settings)[0]
    from pretrain.config.batch_split import split_job
    from pretrain.engine.optim import planned_model
    from pretrain.inputs import open_inputs
    from pretrain.model.variants import resolve

    low, _, high = given.nodes.partition("-")
    for nodes in range(int(low), int(high or low) + 1):
        try:
            split_job(config, nodes * given.tasks_per_node)
        except UsageError as error:
            raise UsageError(f"--nodes {given.nodes}, on {counted(nodes, 'node')}: {error}") from None
    if not PLAIN.fullmatch(str(config.folder.resolve())):
        raise UsageError(
            f"{config.folder.resolve()}: SLURM cannot write its log there; in the path of a run only "
            f"letters, digits and . _ - + = @ , : are safe: set another run.name or run.dir"
        )
    inputs = open_inputs(config)
    if not (given.stage == "finetune" and given.after):
        resolve(config.model).grid(config.data.tile_size)
        planned_model(config, inputs.num_classes)
    return config, inputs, check_tracking(config)


def check_start(given: argparse.Namespace, config: Config, inputs: Inputs) -> list[str]:
    """The ids of the run's jobs in the queue, which this one is to follow.

    Raises UsageError if the job could not start, or would find its run at work or finished.
    """
    run = config.folder
    if not shutil.which("sbatch"):
        raise UsageError("sbatch is not on this machine; --print shows the script that it would be given")
    if given.container:
        check_image(given.container)
    if given.after and (state := state_of(given.after)) in NEVER_SUCCEEDS:
        raise UsageError(
            f"--after {given.after}: {state} is what SLURM says of that job; leave --after out if this one "
            f"need not wait"
        )
    queued = [entry for entry in in_queue([run])[run] if entry.state]
    is_chain = given.after in [entry.job for entry in queued]
    if queued and not is_chain:
        raise UsageError(
            f"{run}: {queued[-1]}. It is for this run, and requeues itself while the run needs it: end it by "
            f"python -m launch cancel {run}, or set another run.name, or start after it by "
            f"--after {queued[-1].job}"
        )
    status = RunFolder(run).status()
    silent = time.time() - status.get("time", 0.0)
    if status.get("state") in GOING_ON and silent < SILENT and not is_chain:
        job = f"SLURM job {status['job']}, " if status.get("job") else ""
        raise UsageError(
            f"{run}: it is running as {job}process {status.get('pid')} on {status.get('host')}, which gave a "
            f"sign of life {max(0.0, silent):.0f} s ago: end it first, or set another run.name"
        )
    from pretrain.checkpoints.checkpoint import Checkpoint, complete

    saved = complete(RunFolder(run).checkpoints)
    if not saved and config.run.resume != "restart":
        check_not_lost(RunFolder(run))
    if saved and config.run.resume in ("auto", "never"):
        found = saved[0]
        if config.run.resume == "never":
            raise UsageError(f"{run}: run.resume=never, and it has {found.name}: set another run.name")
        if (step := int(found.name.removeprefix("step-"))) >= inputs.steps:
            raise UsageError(
                f"{run} is finished: step {step} of {inputs.steps}. Ask for more steps by train.steps, or "
                f"set another run.name"
            )
        from pretrain.resume import check_training

        with suppress(DataError):  # a damaged checkpoint: the job goes back to an older one
            check_training(Checkpoint(found), inputs, config)
    return [entry.job for entry in queued]
