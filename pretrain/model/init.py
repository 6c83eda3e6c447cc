"""Initial weights depend on (seed, parameter name) only, not on the number of processes or on any order.

Each module declares the initial values of its parameters in `init_rules`: {name within the module:
rule}. A rule fills one whole tensor from a generator. Normalisation layers need no entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor, torch.Generator | None], object]
# (name, shape of the whole parameter) -> its initial value, fp32, the same on every process.
InitialValue = Callable[[str, torch.Size], Tensor]
StartingValues = Callable[[nn.Module], InitialValue]

# What activation checkpointing and torch.compile insert into parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


class HasRules(Protocol):
    """A module that declares the initial values of its parameters."""

    @property
    def init_rules(self) -> Mapping[str, Rule]:
        """By the parameters' names within the module."""

    def get_parameter(self, target: str) -> nn.Parameter:
        """As in nn.Module."""


def _constant(values: Tensor, generator: torch.Generator | None, *, value: float) -> None:
    values.fill_(value)


def _normal(values: Tensor, generator: torch.Generator | None, *, std: float) -> None:
    values.normal_(0.0, std, generator=generator)


def _xavier_uniform(values: Tensor, generator: torch.Generator | None, *, parts: int) -> None:
    for part in values.chunk(parts):
        nn.init.xavier_uniform_(part, generator=generator)


def constant(value: float) -> Rule:
    """The same value everywhere."""
    return partial(_constant, value=value)


def normal(std: float) -> Rule:
    """A normal distribution around 0."""
    return partial(_normal, std=std)


def xavier_uniform(parts: int = 1) -> Rule:
    """Glorot and Bengio 2010, eq. 16, for (out, in) matrices.

    parts: how many matrices are stacked along out; the bound is that of one of them.
    """
    return partial(_xavier_uniform, parts=parts)


def lecun_normal(values: Tensor, generator: torch.Generator | None) -> None:
    """A normal distribution of variance 1 / fan-in, truncated at two standard deviations: flax's default.

    LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """
    fan_in = values[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978  # the deviation of the truncated standard normal distribution
    nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)


zeros = constant(0.0)
ones = constant(1.0)


def reset(module: HasRules) -> None:
    """Fill the parameters that have rules, from torch's default generator; for use in constructors.

    On the meta device nothing happens: torch would import its compiler only to draw numbers there.
    """
    with torch.no_grad():
        for name, rule in module.init_rules.items():
            parameter = module.get_parameter(name)
            if not parameter.is_meta:
                rule(parameter, None)


def initial_value(model: nn.Module, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial value of one whole parameter of `model`, float32 on the CPU.

    name: the parameter's full name; shape: of the whole, unsharded parameter. RuntimeError if there is no
    rule for it.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    rule = _rule(model, name)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        rule(values, generator)
    return values


def initialize(model: nn.Module, seed: int) -> None:
    """Give every parameter of an unsharded model its `initial_value`, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(model, name, parameter.shape, seed))


def _rule(model: nn.Module, name: str) -> Rule:
    """The rule for the parameter `name`, from the innermost module that has one."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        rules = getattr(module, "init_rules", {})
        if ".".join(parts[depth:]) in rules:
            return rules[".".join(parts[depth:])]
    if isinstance(model.get_submodule(".".join(parts[:-1])), nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
        return ones if parts[-1] == "weight" else zeros
    raise RuntimeError(f"no rule says how the parameter {name!r} of {type(model).__name__} begins")


def random_values(model: nn.Module, seed: int) -> InitialValue:
    """`initial_value` for this model and seed."""
    return lambda name, shape: initial_value(model, name, shape, seed)
