"""Initial weights as a function of (seed, parameter name), at any world size, in any order.

Each module says in `init_rules` how its parameters begin: {name within the module: rule}. A rule
fills one full tensor from a generator. Normalisation layers need no entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor, torch.Generator | None], object]
# By a parameter's name and whole shape its first value, fp32, the same on every process.
InitialValue = Callable[[str, torch.Size], Tensor]
StartingValues = Callable[[nn.Module], InitialValue]

# What activation checkpointing and torch.compile write into parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def _constant(values: Tensor, generator: torch.Generator | None, *, value: float) -> None:
    values.fill_(value)


def _normal(values: Tensor, generator: torch.Generator | None, *, std: float) -> None:
    values.normal_(0.0, std, generator=generator)


def _xavier_uniform(values: Tensor, generator: torch.Generator | None, *, parts: int) -> None:
    for part in values.chunk(parts):
        nn.init.xavier_uniform_(part, generator=generator)


def constant(value: float) -> Rule:
    return partial(_constant, value=value)


def normal(std: float) -> Rule:
    return partial(_normal, std=std)


def xavier_uniform(parts: int = 1) -> Rule:
    """Glorot and Bengio 2010, eq. 16, for (out, in) matrices.

    parts: so many matrices are stacked along out; each is drawn by its own size.
    """
    return partial(_xavier_uniform, parts=parts)


def lecun_normal(values: Tensor, generator: torch.Generator | None) -> None:
    """Variance 1 / fan-in, cut off at two standard deviations: what flax gives a convolution."""
    fan_in = values[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978  # the cut takes this share of the deviation away
    nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=generator)


zeros = constant(0.0)
ones = constant(1.0)


def reset(module: nn.Module) -> None:
    """Fill what `module` declares rules for from torch's own generator; for use in constructors.

    Nothing is drawn on the meta device, where torch would import its compiler for it.
    """
    with torch.no_grad():
        for name, rule in module.init_rules.items():
            parameter = module.get_parameter(name)
            if not parameter.is_meta:
                rule(parameter, None)


def initial_value(model: nn.Module, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The whole initial value, float32 on the CPU, of one parameter of `model`.

    name: the parameter's full name; shape: its full (unsharded) shape. RuntimeError if nothing says
    how the parameter begins.
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
    """Fill every parameter of an unsharded model in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(model, name, parameter.shape, seed))


def _rule(model: nn.Module, name: str) -> Rule:
    """The rule of the innermost module around `name` that has one."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        rules = getattr(module, "init_rules", {})
        if ".".join(parts[depth:]) in rules:
            return rules[".".join(parts[depth:])]
    if isinstance(model.get_submodule(".".join(parts[:-1])), nn.LayerNorm | nn.GroupNorm):
        return ones if parts[-1] == "weight" else zeros
    raise RuntimeError(f"no rule says how the parameter {name!r} of {type(model).__name__} begins")


def random_values(model: nn.Module, seed: int) -> InitialValue:
    """First weights that are a function of the seed and the parameter's name alone."""
    return lambda name, shape: initial_value(model, name, shape, seed)
