"""One process of a job from start to end: check, join the others, train, exit with the right code."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data_tools.errors import Stopped, UsageError, UserError, print_line, printable, retrying, traceback_of
from data_tools.shards.remote import stop_waiting_when

from .config import loading
from .config.schema import Config
from .model.variants import resolve
from .run import watchdog
from .run.files import write_json
from .run.folder import RunFolder, log
from .run.identity import identify
from .run.lost import is_consequence, silent_ranks
from .run.rendezvous import ranks_from_environment, slurm_job, started_by_srun
from .run.restart import begin, begins_anew
from .run.stop import EXIT_CODE, StopFlag
from .run.wandb_environment import check_tracking
from .run.watchdog import Watchdog

if TYPE_CHECKING:
    from .inputs import Inputs
    from .model.init import StartingValues
    from .run.processes import World

# Seconds that the other processes wait before they end: torchrun blames the first to end.
FIRST_TO_FAIL_ENDS_FIRST = 2.0


def run_job(
    config: Config,
    stop: StopFlag,
    prepare: Callable[[], StartingValues] | None = None,
) -> NoReturn:
    """Train as `config` says and exit.

    stop: set by signals. prepare: returns the initial weights of a run that starts from other weights; called
    only if the run has no checkpoint. All that one process can check is checked before they join.
    """
    rank, size = ranks_from_environment()
    folder = RunFolder(config.folder, rank)
    stop_waiting_when(lambda: bool(stop))
    try:
        resolve(config.model).grid(config.data.tile_size)

        from .checkpoints.checkpoint import complete
        from .config.batch_split import split_job
        from .engine.blocks import compiling
        from .engine.optim import planned_model
        from .inputs import Job, open_inputs
        from .run import processes

        split = split_job(config, size)
        inputs = open_inputs(config)
        model = planned_model(config, inputs.num_classes)
        compiling(config.engine)
        if rank == 0:
            check_tracking(config)
        anew = begins_anew(config, folder)
        begun = [] if anew else complete(folder.checkpoints)
        if begun and config.run.resume == "never":
            raise UsageError(
                f"{folder.path} holds a run with the checkpoint {begun[0].name}: set another run.name, or "
                f"run.resume=auto to go on with it"
            )
        changed = _changed_settings(config) if begun else {}
        starting_values = prepare() if prepare and not begun else None
    except Stopped:
        _stopped_before_the_run(rank, stop)
    except (UserError, OSError) as raised:
        error = in_one_sentence(raised)
        folder.refuse(error.exit_code, str(error))
        fail(error, rank, first_only=True)

    try:
        world = processes.start(config.train.step_timeout, config.launch.join_timeout, stop)
        world.on_all(folder.create)
        world.on_rank0(folder.lock)
        if not begun:
            world.on_rank0(lambda: begin(folder, anew))
        world.on_rank0(lambda: watchdog.clear_reports(folder.path))
    except Stopped:
        _stopped_before_the_run(rank, stop)
    except (UserError, OSError) as raised:
        error = in_one_sentence(raised)
        folder.refuse(error.exit_code, str(error))
        fail(error, rank, first_only=error.shared)
    before = folder.status()
    hosts = ["?"] * size
    try:
        stop.begun = True
        folder.log_to_file_and_console()
        ids = {} if rank else identify(folder)
        if rank == 0:
            folder.set_status(
                "starting",
                anew=True,
                **({"job": None, "restart": 0} | slurm_job()),  # not those of an earlier start
                **ids,
                pid=os.getpid(),
                steps=inputs.steps,
                processes=size,
            )
        hosts = world.gather(socket.gethostname())  # returns once rank 0 has written status.json
        # As where the job was killed between its last checkpoint and its report.
        unreported = world.gather(before.get("state") != "done" or not folder.report.exists())[0]
        with Watchdog(folder, rank, hosts, config.train.step_timeout, stop) as watch:
            from .train import build_trainer

            if started_by_srun():
                from .run.cpus import limit_torch_threads

                limit_torch_threads(config.data.workers)
            job = Job(config, inputs, split, world, folder, stop, watch)
            trainer = build_trainer(job, model, starting_values)
            was_finished = trainer.finished
            if was_finished and unreported:
                trainer.report(trainer.examples())
            elif not was_finished:
                _note_settings(config, inputs, folder, changed)
                code = trainer.run()
        stop_waiting_when(lambda: True)  # what is read ahead is not needed any more
        if was_finished:
            log.info("%s is finished: step %d of %d", folder.path, trainer.step, inputs.steps)
            if rank == 0:
                if before.get("state") == "done":
                    folder.replace_status(before | {"run_id": before.get("run_id") or folder.run_id})
                else:
                    folder.set_status("done", step=trainer.step, exit_code=0)
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
            facts: dict[str, Any] = {"signal": stop.signal} if stop.signal else {}
            folder.set_status(state, step=trainer.step, exit_code=code, **facts)
    except Stopped:  # this process waited for data, and others for it: no new checkpoint can be saved
        log.info("stopped by %s while it waited for data: go on from the last checkpoint", stop.signal)
        folder.set_status("stopped", exit_code=EXIT_CODE, signal=stop.signal)
        os._exit(EXIT_CODE)
    except KeyboardInterrupt:
        folder.set_status("failed", exit_code=1, reason="Ctrl-C, twice", rank=rank)
        error = UserError("stopped by Ctrl-C, twice: steps since the last checkpoint are lost")
        fail(error, rank, first_only=True)
    except Exception as raised:
        try:
            error = in_one_sentence(raised)
        except Exception:
            _fail_unexpectedly(folder, world, hosts, raised)
        if isinstance(error, UsageError) and before:
            folder.refuse(error.exit_code, str(error))
            if rank == 0 or not error.shared:
                folder.replace_status(before)  # a refused command changes nothing about the run
        else:
            folder.set_status("failed", exit_code=error.exit_code, reason=str(error), rank=rank)
        fail(error, rank, first_only=error.shared)
    processes.leave(world, code)


def _stopped_before_the_run(rank: int, stop: StopFlag) -> NoReturn:
    """Nothing was done since the last checkpoint."""
    print_line(f"rank {rank}: stopped by {stop.signal} before the run began", error=True)
    os._exit(EXIT_CODE)


def _note_settings(config: Config, inputs: Inputs, folder: RunFolder, changed: dict[str, str]) -> None:
    """Log the changed settings and the notes on the data; rank 0 writes config.yaml and classes.json."""
    for key, values in changed.items():
        log.info("changed since the last start: %s %s", key, values)
    for note in inputs.notes():
        log.info("note: %s", note)
    if folder.rank == 0:
        file = folder.path / "config.yaml"
        try:
            retrying(lambda: loading.save(config, file))
            if inputs.classes is not None:
                file = folder.classes
                retrying(lambda: write_json(file, inputs.classes))
        except OSError as error:  # of a write, it does not name the file itself
            raise UserError(
                f"{file} could not be written: {error.strerror}; mend that and start again"
            ) from None


def _fail_unexpectedly(folder: RunFolder, world: World, hosts: list[str], error: Exception) -> NoReturn:
    """End this process with exit code 1.

    The first process to fail prints its error. The others fail because of it and only log their errors. If
    none does, a process was killed: the first to notice says which.
    """
    text = traceback_of(error)
    reason = printable(f"{type(error).__name__}: {error}")
    log.error("rank %d on %s failed:\n  %s", world.rank, hosts[world.rank], text)
    rank, cause = world.rank, f"error: rank {world.rank} on {hosts[world.rank]} failed: {reason}"
    if world.size > 1 and is_consequence(error):
        time.sleep(FIRST_TO_FAIL_ENDS_FIRST)
        told = folder.status().get("state") == "failed"
        silent = [] if told else silent_ranks(folder.path, world.rank, world.size)
        reason, text = "the processes lost their connections to each other", ""
        if silent:
            rank = silent[0]
            reason = (
                f"{named(silent, hosts)} ended without a word: killed, as for lack of memory, or its node"
            )
        cause = f"error: {reason}"
    if folder.set_failed(exit_code=1, reason=reason, rank=rank, **({"traceback": text} if text else {})):
        if text:
            print_line(text, error=True)
        print_line(cause, error=True)
        _tell_torchrun(text or reason)
    else:
        time.sleep(FIRST_TO_FAIL_ENDS_FIRST)
    os._exit(1)


def _tell_torchrun(text: str) -> None:
    """Write what torchrun shows, as it is, at the end of its own report."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        told = {"extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            write_json(Path(file), {"message": told})


def named(ranks: list[int], hosts: list[str]) -> str:
    """Processes by rank and host, in words."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} on {hosts[ranks[0]]}"
    where = ", ".join(sorted({hosts[rank] for rank in ranks})[:4])
    return f"ranks {', '.join(map(str, ranks[:8]))}{' ...' * (len(ranks) > 8)} on {where}"


def in_one_sentence(raised: Exception) -> UserError:
    """A UserError as it is; the error of a file as one that names the file. Raises anything else again."""
    if isinstance(raised, UserError):
        return raised
    if not isinstance(raised, OSError) or not isinstance(raised.filename, str | os.PathLike):
        raise raised
    log.error("%s", traceback_of(raised))  # only into the log file
    text = f"{os.fspath(raised.filename)}: {raised.strerror}"
    return UserError(f"{text}: look after the disk or the network that it is on, then start again")


def _changed_settings(config: Config) -> dict[str, str]:
    """What differs from the settings that the run was last started with (see `loading.changes`).

    Raises UsageError if the run began from other weights, as far as they are still there to compare.
    """
    try:
        old = loading.read(config.folder / "config.yaml", type(config))
    except UserError:  # written by another version, or not at all
        return {}
    changed = loading.changes(old, config)
    if "init" in changed:
        was, now = (os.path.realpath(getattr(each, "init")) for each in (old, config))  # noqa: B009
        if was == now:
            del changed["init"]
        elif os.path.exists(was) and os.path.exists(now):
            raise UsageError(
                f"{config.folder} was started from another init ({changed['init']}): set it back, or set "
                f"another run.name"
            )
    return changed


def own_rank() -> int:
    """The rank of this process; ends it with exit code 2 if its environment contradicts itself."""
    try:
        return ranks_from_environment()[0]
    except UsageError as error:
        fail(error, 0, first_only=False)


def fail(error: UserError, rank: int, *, first_only: bool) -> NoReturn:
    """Print `error` in one line on stderr and exit with its code; first_only: only rank 0 prints it."""
    if rank == 0 or not first_only:
        where = f"rank {rank}: " if rank else ""
        print_line(f"error: {where}{error}", error=True)
    if log.handlers:  # the log file, as nobody may see stderr
        log.error("error: %s", error)
    os._exit(error.exit_code)
