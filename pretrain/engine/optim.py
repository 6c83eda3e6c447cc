"""Optimizers, their parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_tools.errors import UsageError

from ..config.keys import nearest
from ..config.schema import Config, OptimConfig
from ..model.build import Model, build_model

# The optimizer's state tensors that have the shape of a parameter, by torch's names.
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def schedule(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    A linear warm-up reaches config.lr at step warmup_steps. Then the rate is constant, falls to 0 at the end
    (linear, cosine), or is proportional to the inverse square root of the step (rsqrt).
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
    """The names of parameters with the same weight decay; scale: a factor of their learning rate."""

    names: list[str]
    weight_decay: float
    scale: float


def build_optimizer(
    config: OptimConfig, plan: list[ParameterGroup], parameters: dict[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), or SGD with momentum, over the `parameters` that the plan names."""
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "scale": group.scale,
        }
        for group in plan
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return SGD(groups, lr=config.lr, momentum=config.momentum)


class SGD(torch.optim.SGD):
    """torch's SGD with the `found_inf` of the fused AdamW: a step where it is 1 changes nothing."""

    found_inf: Tensor | None = None

    # ignore: torch's signature also promises the value of a closure, and this project's steps have none
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        kept = []
        found, self.found_inf = self.found_inf, None  # torch's SGD raises an error if it is set
        for group in self.param_groups if found is not None else ():
            for parameter in group["params"]:
                for tensor in (parameter, self.state[parameter]["momentum_buffer"]):
                    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                    kept.append((local, local.clone()))
        super().step()
        if found is not None:
            for tensor, before in kept:
                tensor.copy_(torch.where(found.bool(), before, tensor))


def create_state(config: OptimConfig, optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
    """Zero state for each of the tensors that the optimizer changes.

    torch would create it at the first step only, but a checkpoint is loaded into it before.
    """
    for tensor in tensors:
        state = optimizer.state[tensor]
        if config.name == "adamw":
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        for moment in MOMENTS[config.name]:
            state[moment] = torch.zeros_like(tensor)


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors that have the parameter's shape, each with its name of MOMENTS."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if key != "step":
            yield key, value


def freeze(model: nn.Module, names: list[str]) -> None:
    """Exclude the named parameters, and those of the named modules, from training.

    Raises UsageError for a name that the model lacks, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        frozen = [key for key in parameters if f"{key}.".startswith(f"{name}.")]
        if not frozen:
            modules = [module for module, _ in model.named_modules() if module]
            raise UsageError(
                f"optim.freeze: the model has no '{name}'{nearest(name, [*parameters, *modules])}",
                shared=True,
            )
        for key in frozen:
            parameters[key].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UsageError("optim.freeze: nothing is left to train", shared=True)


def planned_model(config: Config, num_classes: int) -> Model:
    """The model of a configuration without weights, on the meta device; what it says is frozen.

    Raises UsageError for what does not fit together, and as `freeze` does.
    """
    with torch.device("meta"):
        model = build_model(config, num_classes)
    freeze(model, config.optim.freeze)
    return model


def parameter_groups(config: OptimConfig, model: Model) -> list[ParameterGroup]:
    """The trainable parameters, grouped by whether they decay and by the learning-rate scale of their depth.

    Only the weights of linear layers and convolutions decay; biases, norms, class tokens and position
    tables do not, as in Google's code of arXiv 2010.11929.
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
    """The depth of a parameter: 0 before the blocks, i + 1 in block i, depth + 1 behind the blocks."""
    block = re.search(r"\blayers\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return depth + 1 if re.search(r"\b(head|pool|ln_post)\b", name) else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
