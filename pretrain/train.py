"""The training loop."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data_tools.batches.stream import BatchStream, checksum
from data_tools.errors import DataError
from data_tools.tile_batch import TileBatch

from .checkpoints.facts import model_facts
from .checkpoints.retention import Retention
from .checkpoints.saver import Saver
from .config.batch_split import BatchSplit
from .config.fault import STEP_PHASES, parse_fault
from .config.schema import Config
from .engine.base import InitialValue
from .engine.kinds import ENGINES
from .engine.optim import freeze, schedule
from .evaluate import Interrupted, evaluate, look_at
from .inputs import Inputs, SkippingStream
from .model.build import build_model
from .model.flops import training_flops
from .model.init import initial_value
from .objective import build_measure, build_objective
from .resume import newest_checkpoint, resume
from .run.folder import RunFolder, log, read_rows
from .run.injector import Injector
from .run.metrics import Meter, console_line, peak_flops, progress_bar, speed_row
from .run.nonfinite import NonFinite, finite
from .run.processes import World
from .run.report import Example, write_report
from .run.stop import EXIT_CODE, StopFlag
from .run.tracking import start_tracking
from .run.watchdog import Watchdog

StartingValues = Callable[[nn.Module], InitialValue]


def model_text(config: Config) -> str:
    """The name of the model, and which of its sizes are not those of the name."""
    sizes = ("patch_size", "embed_dim", "num_layers", "num_heads", "mlp_dim")
    own = {key: getattr(config.model, key) for key in sizes if getattr(config.model, key) is not None}
    return config.model.name + (f" with {', '.join(f'{k}={v}' for k, v in own.items())}" if own else "")


def random_values(model: nn.Module, seed: int) -> InitialValue:
    """First weights that are a function of the seed and the parameter's name alone."""
    return lambda name, shape: initial_value(model, name, shape, seed)


class Trainer:
    """A run in one of its processes. `starting_values` replaces the random first weights (fine-tuning)."""

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        split: BatchSplit,
        world: World,
        folder: RunFolder,
        stop: StopFlag,
        watchdog: Watchdog,
        starting_values: StartingValues | None = None,
    ) -> None:
        self.config, self.inputs, self.split = config, inputs, split
        self.world, self.folder, self.stop, self.watchdog = world, folder, stop, watchdog
        self.fault = Injector(parse_fault(config.fault), world.rank, folder.path / ".fault")
        self.nonfinite = NonFinite(config.train.max_nonfinite)
        self.objective = build_objective(config.objective)
        self.measure = build_measure(config.objective.name)
        with torch.device("meta"):
            model = build_model(config, inputs.num_classes)
        freeze(model, config.optim.freeze)
        sizes = {
            "tile_size": config.data.tile_size,
            "num_classes": inputs.num_classes,
            "masked": config.objective.name == "masked_patches",
        }
        counts = range(1, config.data.max_tiles + 1)
        self.flops = {n: training_flops(config.model, **sizes, tiles=n) for n in counts}
        parameters = sum(p.numel() for p in model.parameters())
        found = newest_checkpoint(folder, world)
        if starting_values is None or found:
            starting_values = partial(random_values, seed=config.run.seed)
        self.engine = ENGINES[config.engine.kind](config, world, model, starting_values(model))
        self.step = resume(found, self.engine, inputs, config, split) if found else 0
        before = found.state.get("images", found.state["position"]) if found else 0
        self.images_of_other_sizes = before - self.step * split.batch_size  # 0 with one batch size throughout
        self.saver = Saver(
            folder.checkpoints,
            world,
            background=config.checkpoint.background,
            retention=Retention(config.checkpoint.keep, config.checkpoint.keep_every),
            on_error=config.checkpoint.on_error,
        )
        self.saved = self.step if found else -1
        known = sum(row["split"] == "train" for row in read_rows(folder.bad_samples))
        self.bad = world.gather(known)[0]
        self.nonfinite.total = sum(row["step"] <= self.step for row in read_rows(folder.nonfinite))
        self._new_bad = 0
        self._noted: set[tuple[str, str, str]] = set()
        world.rank0_first(lambda: folder.drop_after(self.step))
        self.meter = Meter()
        self.peak = peak_flops(world.device)
        log.info(
            "%s: %.1f M parameters, engine %s %s, %d %s",
            model_text(config),
            parameters / 1e6,
            config.engine.kind,
            config.engine.precision,
            world.size,
            "process" if world.size == 1 else "processes",
        )
        epochs = inputs.epochs(inputs.steps)
        log.info("%s; %d steps%s", split, inputs.steps, "" if epochs is None else f" = {epochs:.2f} epochs")
        log.info(inputs.order_text())

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do. Asked by every process at the same point."""
        return self.step >= self.inputs.steps and not self._evaluation_missing()

    @property
    def _images(self) -> int:
        return self.images_of_other_sizes + self.step * self.split.batch_size

    def run(self) -> int:
        """Train to the last step. Returns 0, or 75 when a signal ended it with a checkpoint saved."""
        config, world, steps = self.config, self.world, self.inputs.steps
        self.tracker = start_tracking(config, self.folder, asdict(config), world.rank)
        self.saver.reserve(self.engine.ranges())
        stopping = self._catch_up()
        self.meter.reset()
        with (
            SkippingStream(config.train.skip, self._open_stream) as stream,
            progress_bar(self.step, steps, world.rank) as advance,
        ):
            while self.step < steps and not stopping:
                self.step = stream.seek(self.step)
                rate = schedule(config.optim, self.step, steps)
                objective = self.fault.objective(self.step + 1, self.objective)
                loss = torch.zeros((), device=world.device)
                for micro in range(self.split.accumulation):
                    last = micro == self.split.accumulation - 1
                    batch = self._next(stream)
                    self._enter("compute")
                    loss += self.engine.train_micro_batch(batch, objective, self.step, micro, last)
                self._enter("update")
                norm = self.engine.update(rate, self.step)
                self._enter("agree")
                self.step += 1
                self.nonfinite.add(self.step, norm)
                advance(self.step)
                stopping = self._step_boundary()
                if self.step == 1 or self.step % config.train.log_every == 0 or self.step == steps:
                    self._look_back()
                    self._log(self.world.sum([loss.item()])[0] / self.split.batch_size, norm, rate)
                if self._evaluation_due():
                    stopping |= self._evaluate()
                if self.step % config.checkpoint.every == 0 or self.step == steps or stopping:
                    self._save()
        if stopping:
            self._save()
        self.saver.finish()
        if self.saver.error:
            raise self.saver.error  # there is nothing to go on with
        examples = [] if stopping else self._examples()
        if world.rank == 0:
            write_report(self.folder, config, self.inputs.classes, examples)
        self.tracker.finish()
        return EXIT_CODE if stopping and not self.finished else 0

    def _enter(self, phase: str) -> None:
        """Say where this process is: to the watchdog, and to a fault that waits for it."""
        self.watchdog.enter(self.step, phase)
        self.fault.enter(self.step + (phase in STEP_PHASES), phase)

    def _open_stream(self, step: int) -> BatchStream:
        pin = self.world.device.type == "cuda"
        return self.inputs.train_stream(self.split, self.world.rank, step, pin)

    def _next(self, stream: SkippingStream) -> TileBatch:
        self._enter("data")
        asked = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - asked
        flops = sum(self.flops[n] for n in batch.tiles_per_image.tolist())
        self.meter.count(len(batch), len(batch.tiles), flops, waited)
        self._new_bad += self._note_bad(batch, "train")
        if self.config.data.trace:
            self._trace(batch)
        return batch

    def _step_boundary(self) -> bool:
        """What the processes agree on after each step; returns whether one of them was asked to stop."""
        values = [float(bool(self.stop)), float(self.saver.written), float(self._new_bad)]
        stopping, written, new_bad = self.world.sum(values)
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

    def _look_back(self) -> None:
        """Note the steps left out since the last look. Raises DivergedError for too many in a row."""
        for step in self.nonfinite.look():
            if self.world.rank == 0:
                row = self.inputs.samples_of_step(step)
                self.folder.add_nonfinite({"step": step, **row})
            log.warning(
                "step %d: the loss or gradient is not finite, the step is left out; its samples stand in %s",
                step,
                self.folder.nonfinite,
            )
        self.nonfinite.check()

    def _log(self, loss: float, norm: Tensor, rate: float) -> None:
        meter = self.meter
        seconds = meter.seconds
        sums = self.world.sum([meter.images, meter.tiles, meter.flops, meter.waited])
        meter.reset()
        row: dict[str, Any] = {
            "step": self.step,
            "images": self._images,
            "epoch": self.inputs.epochs(self.step),
            "loss": finite(loss),
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

    def _evaluation_due(self) -> bool:
        every = self.config.train.eval_every
        last = self.step == self.inputs.steps
        return self.inputs.val is not None and (last or bool(every and self.step % every == 0))

    def _evaluate(self) -> bool:
        """Evaluate on data.val; returns whether the job was asked to stop meanwhile."""
        began = time.perf_counter()
        self._enter("evaluation")
        stream = self._noting_bad(self.inputs.eval_stream(self.world))
        found = None
        with self.engine.averaged(), suppress(Interrupted):
            found = evaluate(self.engine.logits, self.measure, stream, self.world, lambda: bool(self.stop))
        if found is None:
            log.info("step %d: evaluation interrupted by a signal", self.step)
            return True
        row = {"step": self.step, "split": "val", **found.row()}
        if self.engine.ema:
            row["weights"] = "ema"
        if self.world.rank == 0:
            log.info("step %d  val %s", self.step, found)
            self.folder.add_metrics(row)
        self.tracker.log(row)
        if self.config.checkpoint.keep_best and found.score > self.saver.best_score:
            self.saver.mark_best(self.step, found.score)
            self._save()
        self.meter.since += time.perf_counter() - began
        return False

    def _examples(self) -> list[Example]:
        if self.inputs.val is None:
            return []
        self._enter("evaluation")
        with self.engine.averaged():
            return look_at(self.inputs.example_stream(), self.engine)

    def _evaluation_missing(self) -> bool:
        """Whether the evaluation at the step of the checkpoint was interrupted."""
        rows = read_rows(self.folder.metrics)
        done = any(row.get("split") == "val" and row["step"] == self.step for row in rows)
        return self.step > 0 and self._evaluation_due() and not self.world.gather(done)[0]

    def _catch_up(self) -> bool:
        """Do what an interruption left out; returns whether a process was asked to stop already."""
        stopping = self.world.sum([float(bool(self.stop))])[0] > 0
        if not stopping and self._evaluation_missing():
            stopping = self._evaluate()
        return stopping

    def _save(self) -> None:
        if self.saved == self.step:
            return
        self._enter("save")
        self._look_back()
        if self.nonfinite.streak and self.step < self.inputs.steps:
            log.warning("step %d: not saved, as the last steps were left out", self.step)
            return
        self.saver.save(self.step, self.engine.ranges(), self._state() if self.world.rank == 0 else {})
        self.saved = self.step

    def _state(self) -> dict[str, Any]:
        config = self.config
        return {
            "step": self.step,
            "position": self.step * self.split.batch_size,
            "images": self._images,
            "steps": self.inputs.steps,
            "seed": config.run.seed,
            "order": self.inputs.order_constants(),
            "classes": self.inputs.classes,
            **model_facts(config, self.inputs.num_classes),
            "optimizer": config.optim.name,
            "frozen": list(config.optim.freeze),
            "optimizer_steps": self.engine.optimizer_steps(),
            "engine": asdict(config.engine),
            "processes": self.world.size,
            "micro_batch_size": self.split.micro_batch_size,
            "wandb_id": self.folder.status().get("wandb_id"),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def _noting_bad(self, batches: Iterable[TileBatch]) -> Iterator[TileBatch]:
        for batch in batches:
            self._note_bad(batch, "val")
            yield batch
            self._enter("evaluation")

    def _note_bad(self, batch: TileBatch, split: str) -> int:
        """Write unreadable samples to bad_samples.jsonl; returns how many were not in it."""
        new = 0
        for bad in batch.bad:
            if (split, bad.shard, bad.key) not in self._noted:
                self._noted.add((split, bad.shard, bad.key))
                new += self.folder.add_bad_sample({"split": split, **asdict(bad)})
                log.warning("unreadable sample %s in %s: %s", bad.key, bad.shard, bad.reason)
        return new

    def _trace(self, batch: TileBatch) -> None:
        rows = zip(batch.position.tolist(), batch.sample.tolist(), checksum(batch), strict=True)
        self.folder.add_trace(
            [
                {
                    "step": self.step + 1,
                    "position": p,
                    "shard": self.inputs.train.shard_name(s),
                    "key": self.inputs.train.key(s),
                    "crc32": crc,
                }
                for p, s, crc in rows
            ]
        )
