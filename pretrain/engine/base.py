"""The interface that the training loop uses: an engine holds a model and its optimizer, spreads them over
the processes in its own way, and does training steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from data_tools.random_numbers import hash64
from data_tools.tile_batch import TileBatch

from ..config.schema import Config
from ..model.build import Model
from ..model.init import InitialValue
from ..run.processes import World
from .blocks import prepare_blocks
from .ema import EMA
from .optim import build_optimizer, create_state, moments, parameter_groups, set_learning_rate
from .ranges import LocalRange, local_range

Loss = Callable[[Tensor, TileBatch], Tensor]


class Engine(ABC):
    """A model under training.

    model: on the meta device. initial_value(name, shape): the first value of a whole parameter, fp32, the
    same on every process. Subclasses differ in how they place the model (`place`), and in when the
    processes sum up their gradients (`synchronize`).
    """

    def __init__(self, config: Config, world: World, model: Model, initial_value: InitialValue) -> None:
        self.config, self.world = config, world
        prepare_blocks(model.blocks, config.engine)
        self.model = model
        plan = parameter_groups(config.optim, model)
        self.forward_module = self.place(model)
        with torch.no_grad():
            for parameter in model.parameters():
                # NaN, so that a parameter that nobody initialises makes the loss NaN at once.
                parameter.fill_(float("nan"))
        self.optimizer = build_optimizer(config.optim, plan, dict(model.named_parameters()))
        trained = {f"model/{name}" for name, p in model.named_parameters() if p.requires_grad}
        self.prepare_optimizer()
        self._initialize(initial_value)
        self.ema: EMA | None = None
        if config.optim.ema:
            self.ema = EMA(
                config.optim.ema,
                lambda: (item for item in self.training_ranges() if item.key in trained),
            )

    @abstractmethod
    def place(self, model: Model) -> nn.Module:
        """Move `model` from the meta device onto this process, without values; returns the module to call."""

    @abstractmethod
    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        """The context of a micro-batch's forward and backward pass.

        last: whether this is the step's last micro-batch, at which gradients are summed over the processes.
        """

    def prepare_optimizer(self) -> None:
        """Create the optimizer's state before the first step, so that a checkpoint can be loaded into it."""
        groups = self.optimizer.param_groups
        create_state(self.config.optim, self.optimizer, [p for group in groups for p in group["params"]])

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the scalar `loss` to the parameters' gradients."""
        loss.backward()

    def loaded(self) -> None:  # noqa: B027 (most engines have nothing to do)
        """Update the engine's own copies after the ranges were written to."""

    @property
    def replica(self) -> tuple[int, int]:
        """(i, n): n processes hold the same whole parameter; this one is number i of them, from 0."""
        return 0, 1

    def autocast(self) -> AbstractContextManager[None]:
        """The context of every forward pass, for an engine whose precision is torch's autocast."""
        return nullcontext()

    def train_micro_batch(self, batch: TileBatch, loss: Loss, step: int, micro: int, last: bool) -> Tensor:
        """Forward and backward pass of micro-batch `micro` of step `step` (both from 0).

        Returns the sum of the losses of this process's images, a detached scalar. The gradient is that of
        `loss(logits, batch).sum() / global batch size`, summed over all processes and micro-batches.
        """
        self.model.train()
        self._seed_noise(int(hash64(self.config.run.seed, step, micro, self.world.rank)) >> 1)
        batch = batch.to(self.world.device)
        with self.synchronize(last), self.autocast():
            total = loss(self.forward_module(batch), batch).sum()
            # Engines average gradients over the processes, but their sum is wanted. 0.0 * total is NaN if the
            # loss is not finite: it makes every gradient NaN, and all processes see that in the norm.
            scale = self.world.size / self.config.train.batch_size
            self.backward(total * (scale + 0.0 * total.detach()))
        return total.detach()

    def _seed_noise(self, seed: int) -> None:
        # Not torch.manual_seed, which is slow: it records a stack trace for each unused device.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def update(self, learning_rate: float, step: int) -> Tensor:
        """Optimizer step `step` (from 0). Returns the norm of the whole gradient before clipping, a scalar.

        If the norm is not finite, the step changes nothing. The check stays on the device (`found_inf`),
        so that the host does not wait for it.
        """
        norm = self.clip_and_step(learning_rate)
        if self.ema:
            self.ema.update(step)
        return norm

    def clip_and_step(self, learning_rate: float) -> Tensor:
        """`update` without the moving average."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.config.optim.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        set_learning_rate(self.optimizer, learning_rate)
        # torch's fused optimizers skip the step if this is 1; usually GradScaler sets it.
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def logits(self, batch: TileBatch) -> Tensor:
        """The model's outputs (B, outputs) for a batch on the device, in evaluation mode.

        All processes must call it together.
        """
        self.model.eval()
        with self.autocast():
            return self.forward_module(batch)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside this context the model has the averaged weights, if there are any.

        All processes must enter it together.
        """
        if self.ema is None:
            yield
            return
        self.ema.swap()
        self.loaded()
        yield  # no try: after an error the training does not go on
        self.ema.swap()
        self.loaded()

    def ranges(self) -> Iterator[LocalRange]:
        """All training state that this process holds, as views: writing to them changes the state."""
        yield from self.training_ranges()
        if self.ema:
            yield from self.ema.ranges

    def training_ranges(self) -> Iterator[LocalRange]:
        """The parameters and the optimizer's moments, without the moving average."""
        for name, parameter in self.model.named_parameters():
            yield local_range(f"model/{name}", parameter, *self.replica)
            for moment, tensor in moments(self.optimizer, parameter):
                yield local_range(f"{moment}/{name}", tensor, *self.replica)

    def optimizer_steps(self) -> dict[str, int]:
        """The number of optimizer steps of each parameter, by name; empty if the optimizer does not count."""
        named = self.model.named_parameters()
        steps = {name: s["step"] for name, p in named if "step" in (s := self.optimizer.state.get(p, {}))}
        counts = torch.stack(list(steps.values())).tolist() if steps else []
        return {name: int(count) for name, count in zip(steps, counts, strict=True)}

    def set_optimizer_steps(self, steps: dict[str, int]) -> None:
        """The reverse of `optimizer_steps`."""
        for name, parameter in self.model.named_parameters():
            if "step" in self.optimizer.state.get(parameter, {}):
                self.optimizer.state[parameter]["step"].fill_(steps[name])

    @torch.no_grad()
    def _initialize(self, initial_value: InitialValue) -> None:
        for item in self.training_ranges():
            group, name = item.key.split("/", 1)
            if group == "model":
                value = initial_value(name, torch.Size(item.shape)).reshape(-1)
                item.data.copy_(value[item.offset : item.offset + item.data.numel()])
        self.loaded()
