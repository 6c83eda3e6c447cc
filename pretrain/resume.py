"""Resuming a run: from which checkpoint, and whether that fits the present configuration and data."""

from __future__ import annotations

import platform
import secrets
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_tools.errors import DataError, UsageError
from data_tools.shards.class_names import plain_names

from .checkpoints.checkpoint import Checkpoint, newest
from .checkpoints.facts import difference, model_facts
from .checkpoints.retention import remove_incomplete, set_aside_damaged
from .config.batch_split import BatchSplit
from .config.schema import Config, OptimConfig
from .engine.base import Engine
from .inputs import Inputs, Job
from .run.files import read_rows
from .run.folder import SAMPLE, RunFolder, log
from .run.processes import World


def newest_checkpoint(folder: RunFolder, world: World) -> Checkpoint | None:
    """The newest whole checkpoint of the run; None without any. What interrupted saves left is deleted.

    Called by all processes together. Raises DataError if all checkpoints are damaged, UsageError if it is of
    another run.
    """
    root = folder.checkpoints

    def clean_up() -> None:
        for name in remove_incomplete(root):
            log.info("removed incomplete checkpoint %s", name)

    world.on_rank0(clean_up)
    found, damaged = newest(root, world)
    for text in damaged:
        log.warning("%s; using %s", text, found.path.name if found else "none")
    world.on_rank0(lambda: _identify(folder, found))
    return found


def _identify(folder: RunFolder, found: Checkpoint | None) -> None:
    """Give the run its id at its first start. Raises UsageError if `found` has the id of another run."""
    status, saved = folder.status(), found.state.get("run_id") if found else None
    own = status.get("run_id")
    if found and own and saved and saved not in (own, *status.get("copied_from", [])):
        raise UsageError(
            f"{found.path}: a checkpoint of another run ({saved}; this is {own}): take it away; to go on "
            f"from it, set another run.name and copy it into the folder checkpoints of that run",
            shared=True,
        )
    folder.run_id = own or saved or secrets.token_hex(8)
    if not own:
        folder.set_status("starting", run_id=folder.run_id)


def resume(found: Checkpoint, engine: Engine, inputs: Inputs, config: Config, split: BatchSplit) -> int:
    """Load `found`, the newest whole checkpoint, into the engine; returns its step.

    Raises UsageError that names what differs if classes, order of images, optimizer or model are not the
    same. Newer, damaged checkpoints are set aside after loading.
    """
    check_training(found, inputs, config)
    averaged = engine.ema is not None and found.has("ema")
    found.load_into(engine.ranges(), leave_out="" if averaged else "ema")
    check_model(found, config, inputs.num_classes)
    try:
        engine.set_optimizer_steps(found.state["optimizer_steps"])
    except KeyError as error:
        raise DataError(f"{found.path}: state.json: optimizer_steps lacks {error}", shared=True) from None
    engine.loaded()
    engine.world.on_rank0(lambda: set_aside_damaged(found.path.parent, found.path))
    if engine.ema and not averaged:
        engine.ema.restart()
        log.info("%s has no averaged weights: the average begins at its weights", found.path.name)
    warn_of_other_noise(found, config, split)
    log.info("resumed from %s: step %d", found.path, found.step)
    return found.step


def check_training(found: Checkpoint, inputs: Inputs, config: Config) -> None:
    """Raises UsageError that names what differs if classes, optimizer or order of images are not the same."""
    _check_classes(found, inputs)
    _check_optimizer(found, config.optim)
    _check_order(found, inputs, config.run.accept_new_order)


@dataclass(frozen=True)
class Progress:
    """How far a run had come when its newest checkpoint was saved; for a new run all 0.

    images: seen so far, which is not always step · batch size, as the batch size may have changed. bad:
    unreadable training samples. nonfinite: steps that were left out. saved: step of the checkpoint, or -1.
    """

    step: int
    images: int
    bad: int
    nonfinite: int
    saved: int


def progress_at(found: Checkpoint | None, step: int, folder: RunFolder, world: World) -> Progress:
    """The progress of the run in `folder` at `step`, the step of `found`.

    What was written after that step is deleted. Called by all processes together.
    """
    world.on_rank0(lambda: folder.drop_after(step))
    bad = sum(row["split"] == "train" for row in read_rows(folder.bad_samples, *SAMPLE))
    counts = world.gather([bad, len(read_rows(folder.nonfinite, "step"))])[0]
    return Progress(
        step=step,
        images=found.state.get("images", found.state["position"]) if found else 0,
        bad=counts[0],
        nonfinite=counts[1],
        saved=step if found else -1,
    )


def warn_of_other_noise(found: Checkpoint, config: Config, split: BatchSplit) -> None:
    """Log a warning if dropout is on and draws other numbers than in the job that saved `found`.

    Its random numbers depend on the number of processes and on the size of micro-batches.
    """
    if not max(config.model.dropout, config.model.attention_dropout, config.model.drop_path):
        return
    now = {"processes": split.ranks, "micro_batch_size": split.micro_batch_size}
    was = {key: found.state.get(key, value) for key, value in now.items()}
    if was != now:
        log.warning(
            "warning: dropout is on and the run goes from %d processes and micro-batches of %d images to %d "
            "and %d: its noise is drawn by (seed, step, micro-batch, process), so the losses are not "
            "bitwise those of the old sizes",
            *was.values(),
            *now.values(),
        )


def check_model(found: Checkpoint, config: Config, num_classes: int) -> None:
    """Raises UsageError for a configuration that makes a different model of the same tensors."""
    differs = difference(found.state, model_facts(config, num_classes))
    if differs:
        key, old, new = differs
        raise UsageError(
            f"{found.path}: it was trained with {key}={old}, this run has {new}, which is another model: "
            f"set it back, or set another run.name",
            shared=True,
        )


def _check_classes(found: Checkpoint, inputs: Inputs) -> None:
    saved, wanted = plain_names(found.state["classes"]), inputs.classes
    if saved == wanted or saved is None or wanted is None:
        return
    if len(saved) != len(wanted):
        differs = f"{len(saved)} classes, the data has {len(wanted)}"
    else:
        number = next(i for i, (a, b) in enumerate(zip(saved, wanted, strict=True)) if a != b)
        differs = f"class {number} '{saved[number]}', the data has '{wanted[number]}'"
    raise UsageError(
        f"{found.path}: it was trained with {differs}: to go over to other classes fine-tune, "
        f"python -m finetune CONFIG init={found.path}",
        shared=True,
    )


def _check_optimizer(found: Checkpoint, config: OptimConfig) -> None:
    """Raises UsageError if the saved state is of another optimizer, or of other parameters."""
    saved = found.state["optimizer"], found.state.get("frozen", [])
    for key, old, new in zip(("name", "freeze"), saved, (config.name, config.freeze), strict=True):
        if old != new:
            raise UsageError(
                f"{found.path}: it was trained with optim.{key}={old}, this run has {new}: set it back, or "
                f"begin a run from its weights, python -m finetune CONFIG init={found.path}",
                shared=True,
            )


def _check_order(found: Checkpoint, inputs: Inputs, accept: bool) -> None:
    wanted, saved = inputs.order_constants(), found.state["order"]
    if (
        saved.get("index_sha256") == inputs.train.file_sha256
    ):  # what version 0.1 took for the identity of a set
        saved = saved | {"index_sha256": wanted.get("index_sha256")}
    changed: dict[str, tuple[Any, Any]] = {
        key: (saved.get(key), wanted.get(key))
        for key in [*wanted, *(saved.keys() - wanted.keys())]
        if saved.get(key) != wanted.get(key)
    }
    if not changed:
        return
    if accept:
        text = ", ".join(f"{key} {old} → {new}" for key, (old, new) in changed.items())
        log.info("new order of images from step %d on: %s", found.step, text)
        return
    was, now = (", ".join(f"{key}={pair[side]}" for key, pair in changed.items()) for side in (0, 1))
    raise UsageError(
        f"{found.path}: it was trained with {was}, this run has {now}, which is another order of images: "
        f"set it back, or set another run.name, or accept it with run.accept_new_order=true",
        shared=True,
    )


def state_to_save(job: Job, engine: Engine, step: int, images: int) -> dict[str, Any]:
    """The content of state.json, for a checkpoint after `step` steps and `images` images."""
    config = job.config
    return {
        "step": step,
        "position": step * job.split.batch_size,
        "images": images,
        "steps": job.inputs.steps,
        "seed": config.run.seed,
        "order": job.inputs.order_constants(),
        "classes": job.inputs.classes,
        **model_facts(config, job.inputs.num_classes),
        "optimizer": config.optim.name,
        "frozen": list(config.optim.freeze),
        "optimizer_steps": engine.optimizer_steps(),
        "engine": asdict(config.engine),
        "processes": job.world.size,
        "micro_batch_size": job.split.micro_batch_size,
        "run_id": job.folder.run_id,
        "wandb_id": job.folder.status().get("wandb_id"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
