"""The life of one process of a job: check, join, train, leave with the right exit code."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from data_tools.errors import UsageError, UserError

from .config import loading
from .config.schema import Config
from .model.variants import resolve
from .run import watchdog
from .run.folder import RunFolder, log, write_json
from .run.rendezvous import Stopped, life, started_by_srun
from .run.stop import EXIT_CODE, StopFlag
from .run.watchdog import Watchdog

if TYPE_CHECKING:
    from .inputs import Inputs
    from .model.init import StartingValues

FIRST_TO_FAIL_ENDS_FIRST = 2.0  # s; torchrun names as the cause the process that it saw end first


def run_job(
    config: Config,
    stop: StopFlag,
    prepare: Callable[[], StartingValues] | None = None,
) -> NoReturn:
    """Train as `config` says and exit. `prepare` gives the first weights of a run that starts from others'.

    What can be checked without the other processes is checked before they are joined.
    """
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    folder = RunFolder(config.folder, rank)
    try:
        resolve(config.model).grid(config.data.tile_size)

        from .checkpoints.checkpoint import complete
        from .config.batch_split import split_batch
        from .inputs import Job, open_inputs
        from .run import processes

        split = split_batch(config.train, size)
        inputs = open_inputs(config)
        begun = complete(folder.checkpoints)
        if begun and config.run.resume == "never":
            raise UsageError(
                f"{folder.path} holds a run with the checkpoint {begun[0].name}: set another run.name, or "
                f"run.resume=auto to go on with it"
            )
        changed = _changed_settings(config) if begun else {}
        if "init" in changed:
            raise UsageError(
                f"{folder.path} was started from another init ({changed['init']}): set it back, or set "
                f"another run.name"
            )
        starting_values = prepare() if prepare and not begun else None
    except UserError as error:
        folder.refuse(error.exit_code, str(error))
        fail(error, rank, first_only=True)

    try:
        world = processes.start(config.train.step_timeout, config.launch.join_timeout, stop)
        world.together(folder.create)
        world.rank0_first(lambda: (folder.lock(), watchdog.clear(folder.path)))
    except Stopped:
        os._exit(EXIT_CODE)  # nothing has begun: the checkpoint is that of the life before
    except UserError as error:
        folder.refuse(error.exit_code, str(error))
        fail(error, rank, first_only=error.shared)
    before = folder.status()
    try:
        stop.begun = True
        folder.log_to_file_and_console()
        if rank == 0:
            folder.set_status(
                "starting",
                anew=True,
                **life(),
                wandb_id=folder.wandb_id(),
                pid=os.getpid(),
                steps=inputs.steps,
                processes=size,
            )
        hosts = world.gather(socket.gethostname())  # from here on status.json speaks of this life
        with Watchdog(folder, rank, hosts, config.train.step_timeout, stop) as watch:
            from .train import build_trainer

            if started_by_srun():
                from .run.cpus import share_out

                share_out(config.data.workers)
            job = Job(config, inputs, split, world, folder, stop, watch)
            trainer = build_trainer(job, starting_values)
            already = trainer.finished
            if not already:
                _note_settings(config, inputs, folder, changed)
                code = trainer.run()
        if already:
            log.info("%s is finished: step %d of %d", folder.path, trainer.step, inputs.steps)
            if rank == 0:
                done = {"state": "done", "step": trainer.step, "exit_code": 0}
                write_json(folder.status_file, before if before.get("state") == "done" else before | done)
            processes.leave(world, 0)
        if code == EXIT_CODE:
            log.info(
                "stopped by %s at step %d, checkpoint saved",
                stop.signal or "a signal",
                trainer.step,
            )
        else:
            log.info("done: step %d, run folder %s", trainer.step, folder.path)
        if rank == 0:
            state = "stopped" if code == EXIT_CODE else "done"
            signal = {"signal": stop.signal} if stop.signal else {}
            folder.set_status(state, step=trainer.step, exit_code=code, **signal)
    except UserError as error:
        if isinstance(error, UsageError) and before:
            folder.refuse(error.exit_code, str(error))
            if rank == 0 or not error.shared:
                write_json(folder.status_file, before)  # a refused command changes nothing about the run
        else:
            folder.set_status("failed", exit_code=error.exit_code, reason=str(error), rank=rank)
        fail(error, rank, first_only=error.shared)
    except KeyboardInterrupt:
        folder.set_status("failed", exit_code=1, reason="interrupted twice", rank=rank)
        os._exit(1)
    except Exception as error:
        _fail_unexpectedly(folder, rank, error)
    processes.leave(world, code)


def _note_settings(config: Config, inputs: Inputs, folder: RunFolder, changed: dict[str, str]) -> None:
    for key, values in changed.items():
        log.info("changed since the last start: %s %s", key, values)
    if folder.rank == 0:
        loading.save(config, folder.path / "config.yaml")
        if inputs.classes is not None:
            write_json(folder.classes, inputs.classes)


def _fail_unexpectedly(folder: RunFolder, rank: int, error: Exception) -> NoReturn:
    """End this process. The first one to fail says why; the others fail because of it: in their logs."""
    text = traceback.format_exc()
    reason = f"{type(error).__name__}: {error}"
    log.error("rank %d on %s failed: %s", rank, socket.gethostname(), text)
    if folder.set_failed(exit_code=1, reason=reason, rank=rank, traceback=text):
        print(
            f"{text}error: rank {rank} on {socket.gethostname()} failed: {reason}",
            file=sys.stderr,
            flush=True,
        )
        from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

        ErrorHandler().record_exception(error)  # torchrun shows it at the end of its own report
    else:
        time.sleep(FIRST_TO_FAIL_ENDS_FIRST)
    os._exit(1)


def _changed_settings(config: Config) -> dict[str, str]:
    """What differs from the settings that the run was last started with."""
    try:
        old = loading.read(config.folder / "config.yaml", type(config))
    except UserError:  # written by another version, or not at all
        return {}
    return loading.changes(old, config)


def fail(error: UserError, rank: int, *, first_only: bool) -> NoReturn:
    """Say what is wrong in one line and exit; with first_only, only rank 0 says it."""
    if rank == 0 or not first_only:
        where = f"rank {rank}: " if rank else ""
        print(f"error: {where}{error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)
