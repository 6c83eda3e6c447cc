"""The one protocol that the training loop knows: an engine holds a model and its optimizer, spread over
the processes in its own way, and does a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from data_tools.batch import TileBatch
from data_tools.order import hash64

from ..config import Config
from ..optim import build_optimizer, create_state, parameter_groups, set_learning_rate, state_tensors
from .blocks import prepare_blocks
from .ema import EMA
from .ranges import LocalRange, local_range
from .world import World

Loss = Callable[[Tensor, TileBatch], Tensor]
InitialValue = Callable[[str, torch.Size], Tensor]


class Engine(ABC):
    """A classifier under training.

    model: on the meta device. initial_value(name, shape): the first value of a parameter, whole, fp32, the
    same on every process. Subclasses differ in how they place the model (`place`), and in when
    gradients travel (`synchronize`).
    """

    def __init__(self, config: Config, world: World, model: nn.Module, initial_value: InitialValue) -> None:
        self.config, self.world = config, world
        prepare_blocks(model.blocks, config.engine)
        self.model = model
        plan = parameter_groups(config.optim, model)
        self.forward_module = self.place(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))  # one that is forgotten is loud
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
    def place(self, model: nn.Module) -> nn.Module:
        """Put `model` from the meta device onto this process, unfilled; returns the module to call."""

    @abstractmethod
    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        """The context of a micro-batch's forward and backward; gradients are summed up at the last."""

    def prepare_optimizer(self) -> None:
        """Give the optimizer the state that a checkpoint can be loaded into."""
        create_state(self.config.optim, self.optimizer)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def loaded(self) -> None:  # noqa: B027 (most engines have nothing to do)
        """Called when the ranges have been given other values."""

    @property
    def replica(self) -> tuple[int, int]:
        """(number, count) of this process among those that hold the same undivided parameter."""
        return 0, 1

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def train_micro_batch(self, batch: TileBatch, loss: Loss, step: int, micro: int, last: bool) -> Tensor:
        """Forward and backward. Returns the summed loss of the images of this process, detached.

        The gradient is that of the sum over all processes and micro-batches of
        `loss(logits, batch).sum() / global batch size`.
        """
        self.model.train()
        self._seed_noise(int(hash64(self.config.run.seed, step, micro, self.world.rank)) >> 1)
        batch = batch.to(self.world.device)
        with self.synchronize(last), self.autocast():
            total = loss(self.forward_module(batch), batch).sum()
            # Engines average gradients over the processes; the objective is a sum over them. A loss that is
            # not finite makes every gradient NaN (0 * inf), so that their norm tells all processes.
            scale = self.world.size / self.config.train.batch_size
            self.backward(total * (scale + 0.0 * total.detach()))
        return total.detach()

    def _seed_noise(self, seed: int) -> None:
        # torch.manual_seed writes down the call's stack for every kind of device that is not in use.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def update(self, learning_rate: float, step: int) -> Tensor:
        """Optimizer step `step` (from 0). Returns the whole gradient norm before clipping, on the device.

        Where the norm is not finite the step changes nothing; the device alone knows (`found_inf`).
        """
        norm = self.clip_and_step(learning_rate)
        if self.ema:
            self.ema.update(step)
        return norm

    def clip_and_step(self, learning_rate: float) -> Tensor:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = self.config.optim.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def logits(self, batch: TileBatch) -> Tensor:
        """Logits (B, classes) of a batch on the device, in evaluation mode; called by all processes."""
        self.model.eval()
        with self.autocast():
            return self.forward_module(batch)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the averaged weights, where they are kept; entered by all processes."""
        if self.ema is None:
            yield
            return
        self.ema.swap()
        self.loaded()
        yield  # after an error there is no training to go back to
        self.ema.swap()
        self.loaded()

    def ranges(self) -> Iterator[LocalRange]:
        """All of the training state that this process holds, as live views."""
        yield from self.training_ranges()
        if self.ema:
            yield from self.ema.ranges

    def training_ranges(self) -> Iterator[LocalRange]:
        """The parameters, and the optimizer's tensors of the same shape."""
        for name, parameter in self.model.named_parameters():
            yield local_range(f"model/{name}", parameter, *self.replica)
            for kind, tensor in state_tensors(self.optimizer, parameter):
                yield local_range(f"{kind}/{name}", tensor, *self.replica)

    def optimizer_steps(self) -> dict[str, int]:
        """How often each parameter has been stepped."""
        named = self.model.named_parameters()
        steps = {name: s["step"] for name, p in named if "step" in (s := self.optimizer.state.get(p, {}))}
        counts = torch.stack(list(steps.values())).tolist() if steps else []
        return {name: int(count) for name, count in zip(steps, counts, strict=True)}

    def set_optimizer_steps(self, steps: dict[str, int]) -> None:
        for name, parameter in self.model.named_parameters():
            if "step" in self.optimizer.state.get(parameter, {}):
                self.optimizer.state[parameter]["step"].fill_(steps[name])

    @torch.no_grad()
    def _initialize(self, initial_value: InitialValue) -> None:
        for item in self.training_ranges():
            kind, name = item.key.split("/", 1)
            if kind == "model":
                value = initial_value(name, torch.Size(item.shape)).reshape(-1)
                item.data.copy_(value[item.offset : item.offset + item.data.numel()])
        self.loaded()
