"""Optimizers, their parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_tools.errors import UsageError

from ..config.keys import nearest
from ..config.schema import OptimConfig

STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def schedule(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    A linear warm-up reaches `lr` at step warmup_steps; then constant, linear or cosine (to 0 at the end), or
    rsqrt (proportional to the inverse square root of the step).
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "rsqrt": math.sqrt(max(1, warmup) / max(1, step)),
    }[config.schedule]
    return config.lr * max(0.0, factor)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one weight decay and one scale of the learning rate."""

    names: list[str]
    weight_decay: float
    scale: float


def build_optimizer(
    config: OptimConfig, plan: list[ParameterGroup], parameters: dict[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum, over the `parameters` that the plan names."""
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "scale": group.scale,
        }
        for group in plan
    ]
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    else:
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum)
    return optimizer


class SGD(torch.optim.SGD):
    """torch's, heeding `found_inf` (a step where it is 1 changes nothing) as the fused AdamW does."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        kept = []
        found, self.found_inf = self.found_inf, None  # torch's own refuses what it would not heed
        if found is not None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    for tensor in (parameter, self.state[parameter]["momentum_buffer"]):
                        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                        kept.append((local, local.clone()))
        super().step()
        for tensor, before in kept:
            tensor.copy_(torch.where(found.bool(), before, tensor))


def create_state(config: OptimConfig, optimizer: torch.optim.Optimizer) -> None:
    """Zero state for every parameter, which torch would make at the first step only."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if config.name == "adamw":
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for kind in STATE[config.name]:
                state[kind] = torch.zeros_like(parameter)


def freeze(model: nn.Module, names: list[str]) -> None:
    """Let the named parameters, and those of the named modules, keep their values.

    Raises UsageError for a name that the model lacks, and where nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        frozen = [key for key in parameters if f"{key}.".startswith(f"{name}.")]
        if not frozen:
            modules = [module for module, _ in model.named_modules() if module]
            raise UsageError(
                f"optim.freeze: the model has no {name!r}{nearest(name, [*parameters, *modules])}",
                shared=True,
            )
        for key in frozen:
            parameters[key].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError("optim.freeze: nothing is left to train", shared=True)


def parameter_groups(config: OptimConfig, model: nn.Module) -> list[ParameterGroup]:
    """Trainable parameters by (decays or not, learning-rate scale of its depth).

    Only the kernels decay: not biases, norms, class tokens or position tables, as in the paper's code.
    """
    depth = len(model.blocks)
    groups: dict[tuple[bool, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = config.layer_decay ** (depth + 1 - _layer(name, depth))
            groups.setdefault((_decays(name, parameter), scale), []).append(name)
    return [
        ParameterGroup(names, config.weight_decay if decays else 0.0, scale)
        for (decays, scale), names in groups.items()
    ]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith(".weight") and parameter.ndim >= 2


def _layer(name: str, depth: int) -> int:
    """0 for what lies before the blocks, i + 1 for block i, depth + 1 for what lies behind."""
    block = re.search(r"\blayers\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return depth + 1 if re.search(r"\b(head|pool|ln_post)\b", name) else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors that have the parameter's shape, by kind."""
    for kind, value in optimizer.state.get(parameter, {}).items():
        if kind != "step":
            yield kind, value
