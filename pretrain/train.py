"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data_tools.batches.stream import BatchStream
from data_tools.errors import DataError, without_secrets
from data_tools.tile_batch import TileBatch

from .checkpoints.facts import distinct_names
from .checkpoints.retention import Retention
from .checkpoints.saver import Saver
from .config.fault import STEP_PHASES, parse_fault
from .engine.base import Engine
from .engine.blocks import compiling
from .engine.kinds import ENGINES
from .engine.optim import schedule
from .evaluate import Interrupted, evaluate, make_examples
from .inputs import Job, SkippingStream
from .model.build import Model, model_text
from .model.flops import training_flops_by_tiles
from .model.init import StartingValues, random_values
from .objective import build_measure, build_objective
from .resume import Progress, newest_checkpoint, progress_at, resume, state_to_save
from .run.folder import log
from .run.injector import Injector
from .run.metrics import Meter, console_line, peak_flops, progress_bar, speed_row
from .run.nonfinite import NonFinite, finite
from .run.report import Example, write_report
from .run.samples import SampleLog
from .run.skipping import steps_before
from .run.stop import EXIT_CODE
from .run.tracking import Tracker, start_tracking


def build_trainer(job: Job, model: Model, starting_values: StartingValues | None = None) -> Trainer:
    """Give `model` its values, spread it over the processes, and load the run's newest checkpoint.

    model: see `planned_model`. starting_values: the initial weights of a run without a checkpoint; None:
    random ones. Rows of metrics.jsonl after the checkpoint's step are deleted. Called by all processes
    together. Raises UsageError if the checkpoint does not fit, DataError if all checkpoints are damaged.
    """
    config, inputs, world, folder = job.config, job.inputs, job.world, job.folder
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    found = newest_checkpoint(folder, world)
    if starting_values is None or found:
        starting_values = partial(random_values, seed=config.run.seed)
    engine = ENGINES[config.engine.kind](config, world, model, starting_values(model))
    step = resume(found, engine, inputs, config, job.split) if found else 0
    saver = Saver(
        folder.checkpoints,
        world,
        background=config.checkpoint.background,
        retention=Retention(config.checkpoint.keep, config.checkpoint.keep_every),
        on_error=config.checkpoint.on_error,
    )
    progress = progress_at(found, step, folder, world)
    spread = f"{config.engine.kind} {config.engine.precision}, {world.size} process{'es' * (world.size > 1)}"
    log.info("%s: %s, engine %s", model_text(config), size, spread)
    epochs = inputs.epochs(inputs.steps)
    log.info("%s; %d steps%s", job.split, inputs.steps, "" if epochs is None else f" = {epochs:.2f} epochs")
    log.info(inputs.order_text())
    if note := compiling(config.engine):
        log.info(note)
    return Trainer(job, engine, saver, progress)


class Trainer:
    """The training loop of a run, in one of its processes; made by `build_trainer`.

    step: how many steps are done. saved: the step of the newest checkpoint. bad: unreadable training samples.
    """

    def __init__(self, job: Job, engine: Engine, saver: Saver, progress: Progress) -> None:
        config, inputs = job.config, job.inputs
        self.job, self.config, self.inputs, self.split = job, config, inputs, job.split
        self.world, self.folder, self.stop, self.watchdog = job.world, job.folder, job.stop, job.watchdog
        self.engine, self.saver = engine, saver
        self.step, self.saved, self.bad = progress.step, progress.saved, progress.bad
        # 0 unless the batch size has changed since the first start of the run
        self.images_of_other_sizes = progress.images - progress.step * job.split.batch_size
        self.nonfinite = NonFinite(config.train.max_nonfinite, progress.nonfinite)
        self.fault = Injector(parse_fault(config.fault), job.world.rank, job.folder.path / ".fault")
        self.objective = build_objective(config.objective)
        self.measure = build_measure(config.objective.name)
        self.flops = training_flops_by_tiles(config, inputs.num_classes)
        self.peak = peak_flops(job.world.device)
        self.samples = SampleLog(job.folder, inputs.name_of if config.data.trace else None)
        self.meter, self.tracker = Meter(), Tracker()
        self._new_bad = 0

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do. All processes must ask together."""
        return self.step >= self.inputs.steps and not self._evaluation_missing()

    @property
    def images(self) -> int:
        """How many images the run has seen."""
        return self.images_of_other_sizes + self.step * self.split.batch_size

    def run(self) -> int:
        """Train to the last step. Returns the exit code: 0, or 75 if a signal ended it; all is saved then."""
        config, world, steps = self.config, self.world, self.inputs.steps
        self.tracker = start_tracking(config, self.folder, without_secrets(asdict(config)), world.rank)
        self.saver.reserve(self.engine.ranges())
        stopping = self._evaluate_if_missing()
        self.meter.reset()
        with (
            world.until_stopped(),
            SkippingStream(config.train.skip, self._open_stream) as stream,
            progress_bar(self.step, steps, world.rank) as advance,
        ):
            while self.step < steps and not stopping:
                passed = min(stream.seek(self.step), steps)
                trained = self._train_step(stream) if passed == self.step else None
                self.step = max(self.step, passed)
                advance(self.step)
                stopping = self._step_boundary()
                if trained and (self.step == 1 or self._due(config.train.log_every)):
                    self._log(*trained)
                if self._evaluation_due():
                    stopping |= self._evaluate()
                if self._due(config.checkpoint.every) or stopping:
                    self._save()
        if stopping := stopping or self.step < steps:
            self._save()
        self.saver.finish()
        if self.saver.error:
            raise self.saver.error  # the last checkpoint is missing
        self.report(None if stopping else self.examples())
        self.tracker.finish(hurry=stopping)
        return EXIT_CODE if stopping and not self.finished else 0

    def report(self, examples: Sequence[Example] | None) -> None:
        """Write report.html on rank 0; None: with the examples that it has so far."""
        if self.world.rank == 0:
            self.folder.flush()
            names = distinct_names(self.inputs.classes, self.inputs.num_classes)
            write_report(self.folder, self.config, names, examples)

    def _train_step(self, stream: SkippingStream) -> tuple[Tensor, Tensor, float]:
        """Do one step; returns the sum of its losses in this process, the gradient's norm, and the rate."""
        rate, count = schedule(self.config.optim, self.step, self.inputs.steps), self.split.accumulation
        objective = self.fault.objective(self.step + 1, self.objective)
        loss = torch.zeros((), device=self.world.device)
        for micro in range(count):
            batch = self._next_batch(stream)
            self._enter_phase("compute")
            loss += self.engine.train_micro_batch(batch, objective, self.step, micro, micro == count - 1)
        self._enter_phase("update")
        norm = self.engine.update(rate, self.step)
        self._enter_phase("agree")
        self.step += 1
        self.nonfinite.add(self.step, norm)
        return loss, norm, rate

    def _enter_phase(self, phase: str) -> None:
        """Tell the watchdog that a phase begins; run the injected fault if one is due there."""
        self.watchdog.enter(self.step, phase)
        self.fault.enter(self.step + (phase in STEP_PHASES), phase)

    def _open_stream(self, step: int) -> BatchStream:
        pin = self.world.device.type == "cuda"
        return self.inputs.train_stream(self.split, self.world.rank, step, pin)

    def _next_batch(self, stream: SkippingStream) -> TileBatch:
        self._enter_phase("data")
        asked = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - asked
        flops = sum(self.flops[n] for n in batch.tiles_per_image.tolist())
        self.meter.count(len(batch), len(batch.tiles), flops, waited)
        self._new_bad += self.samples.note_bad(self.step + 1, batch, "train")
        self.samples.trace(self.step + 1, batch)
        return batch

    def _step_boundary(self) -> bool:
        """Tell all processes what changed in a step; returns whether any process was asked to stop.

        Raises DataError for too many unreadable samples.
        """
        changes = (bool(self.stop), self.saver.written, self._new_bad)
        stopping, written, new_bad = self.world.sum([float(change) for change in changes])
        self._new_bad = 0
        if self.saver.pending and written == self.world.size:
            self.saver.advance()
        self.bad += int(new_bad)
        share, samples = self.config.data.max_bad_fraction, self.inputs.training_samples(self.step)
        if self.bad > (max(1, int(share * samples)) if share else 0):
            raise DataError(
                f"{self.bad} of {samples} samples cannot be read, more than data.max_bad_fraction="
                f"{share} allows; they are listed in {self.folder.bad_samples}",
                shared=True,
            )
        return stopping > 0

    def _log(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        self.nonfinite.note(self.folder, self.inputs.samples_of_step)
        mean = self.world.sum([loss.item()])[0] / self.split.batch_size
        meter = self.meter
        seconds = meter.seconds
        sums = self.world.sum([meter.images, meter.tiles, meter.flops, meter.waited])
        meter.reset()
        row: dict[str, Any] = {
            "step": self.step,
            "images": self.images,
            "epoch": self.inputs.epochs(self.step),
            "loss": finite(mean),
            "lr": rate,
            "grad_norm": finite(norm.item()),
            **speed_row(sums, seconds, self.world.size, self.peak),
            "bad_samples": self.bad,
            "nonfinite": self.nonfinite.total,
        }
        if self.world.rank == 0:
            left = (self.inputs.steps - self.step) * self.split.batch_size / row["images_per_s"]
            log.info(console_line(row, self.inputs.steps, left))
            self.folder.add_metrics(row)
            facts = {"loss": row["loss"], "images_per_s": row["images_per_s"], "seconds_left": left}
            self.folder.set_status("running", step=self.step, steps=self.inputs.steps, **facts)
        self.tracker.log(row)

    def _due(self, every: int) -> bool:
        """Whether the last step, or the steps just passed over, had a multiple of `every` (0: none)."""
        before = steps_before(self.config.train.skip, self.step)
        return self.step == self.inputs.steps or bool(every and self.step // every > before // every)

    def _evaluation_due(self) -> bool:
        return self.inputs.val is not None and self._due(self.config.train.eval_every)

    def _evaluate(self) -> bool:
        """Evaluate on data.val; returns whether the job was asked to stop meanwhile."""
        began = time.perf_counter()
        self._enter_phase("evaluation")
        batches = self.samples.noting_bad(self.step, self.inputs.eval_stream(self.world), "val")
        stream = self._reporting_progress(batches)
        found = None
        with self.engine.averaged(), self.world.until_stopped(), suppress(Interrupted):
            found = evaluate(self.engine.logits, self.measure, stream, self.world, lambda: bool(self.stop))
        if found is None:
            log.info("step %d: evaluation interrupted by a signal", self.step)
            return True
        weights = {"weights": "ema"} if self.engine.ema else {}
        row = {"step": self.step, "split": "val", **found.row(), **weights}
        if self.world.rank == 0:
            log.info("step %d  val %s", self.step, found)
            self.folder.add_metrics(row)
        self.tracker.log(row)
        self.report(None)
        if self.config.checkpoint.keep_best and found.score > self.saver.best_score:
            self._save(found.score)
        self.meter.since += time.perf_counter() - began
        return False

    def examples(self) -> list[Example]:
        """Images for the report; called by all processes together."""
        if self.inputs.val is None:
            return []
        self._enter_phase("evaluation")
        with self.engine.averaged():
            return make_examples(self.inputs.example_stream(), self.engine)

    def _evaluation_missing(self) -> bool:
        """Whether the evaluation due at the checkpoint's step is not in metrics.jsonl yet."""
        done = self.world.gather(self.folder.evaluated(self.step))[0]
        return self.step > 0 and self._evaluation_due() and not done

    def _evaluate_if_missing(self) -> bool:
        """Evaluate if an interruption prevented it; returns whether a process was asked to stop."""
        stopping = self.world.sum([float(bool(self.stop))])[0] > 0
        return stopping or (self._evaluation_missing() and self._evaluate())

    def _save(self, best: float | None = None) -> None:
        if self.saved == self.step:
            return None if best is None else self.saver.mark_best(self.step, best)
        self._enter_phase("save")
        self.nonfinite.note(self.folder, self.inputs.samples_of_step)
        if self.nonfinite.streak and self.step < self.inputs.steps:
            return log.warning("step %d: not saved: the last steps were not finite", self.step)
        state = {} if self.world.rank else state_to_save(self.job, self.engine, self.step, self.images)
        self.saver.save(self.step, self.engine.ranges(), state, best)
        self.saved = self.step

    def _reporting_progress(self, batches: Iterable[TileBatch]) -> Iterator[TileBatch]:
        """The batches of an evaluation; after each the watchdog is told that this process goes on."""
        for batch in batches:
            yield batch
            self._enter_phase("evaluation")
