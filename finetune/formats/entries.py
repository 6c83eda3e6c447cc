"""How one of our parameters becomes tensors of a peer, another program's model, and the other way round.

A format is a list of entries, one for each of our parameters. The same list checks and loads the
peer's weights, and writes ours under the peer's names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Weights = Mapping[str, Any]  # the peer's names -> tensors or arrays


@dataclass(frozen=True)
class Entry:
    """ours: the parameter; theirs: the peer's names; give: ours -> theirs; take: theirs -> ours."""

    ours: str
    theirs: tuple[str, ...]
    give: Callable[[Tensor], Sequence[Tensor]]
    take: Callable[..., Tensor]


def same(ours: str, theirs: str) -> Entry:
    """The same tensor under another name."""
    return Entry(ours, (theirs,), lambda x: (x,), lambda x: x)


def viewed(ours: str, theirs: str, leading: int) -> Entry:
    """Theirs has `leading` more axes, of length 1, in front."""
    return Entry(ours, (theirs,), lambda x: (x[(None,) * leading],), lambda x: x[(0,) * leading])


def transposed(ours: str, theirs: str) -> Entry:
    """A kernel (in, out) of a dense layer; ours is (out, in)."""
    return Entry(ours, (theirs,), lambda x: (x.T,), lambda x: x.T)


def convolution(ours: str, theirs: str) -> Entry:
    """A kernel (h, w, in, out) of a convolution; ours is (out, in, h, w)."""
    return Entry(ours, (theirs,), lambda x: (x.permute(2, 3, 1, 0),), lambda x: x.permute(3, 2, 0, 1))


def stacked(ours: str, theirs: Iterable[str]) -> Entry:
    """Several tensors, which stacked along the first axis are one of ours."""
    names = tuple(theirs)
    return Entry(ours, names, lambda x: x.chunk(len(names)), lambda *parts: torch.cat(parts))


def affine(ours: str, theirs: str, bias: bool = True) -> Iterator[Entry]:
    """The weight and, unless bias is False, the bias of one module."""
    for part in ("weight", "bias") if bias else ("weight",):
        yield same(f"{ours}.{part}", f"{theirs}.{part}")


def load(
    model: nn.Module,
    entries: Sequence[Entry],
    weights: Weights,
    shown: Callable[[str], str] = str,
) -> None:
    """Fill `model`, built on `meta`, from the peer's weights: float64 stays, all else is float32.

    shown: turns a name of `entries` into the name that the caller gave. Raises ValueError naming the
    first name that is missing, has another shape, or is not known.
    """
    parameters = dict(model.named_parameters())
    state: dict[str, Tensor] = {}
    known: set[str] = set()
    for entry in entries:
        expected = [tuple(part.shape) for part in entry.give(parameters[entry.ours])]
        parts = []
        for name, shape in zip(entry.theirs, expected, strict=True):
            if name not in weights:
                raise ValueError(f"the weights lack '{shown(name)}', which this configuration needs")
            part = tensor(weights[name])
            if tuple(part.shape) != shape:
                raise ValueError(
                    f"'{shown(name)}' has shape {list(part.shape)}, but the configuration needs {list(shape)}"
                )
            parts.append(part)
        known.update(entry.theirs)
        value = entry.take(*parts)
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        state[entry.ours] = value.to(dtype, copy=True, memory_format=torch.contiguous_format)
    surplus = sorted(weights.keys() - known)
    if surplus:
        raise ValueError(f"the weights hold '{shown(surplus[0])}', which this configuration does not have")
    model.load_state_dict(state, strict=True, assign=True)


def give(model: nn.Module, entries: Sequence[Entry]) -> dict[str, Tensor]:
    """The parameters of `model` under the peer's names, as copies."""
    parameters = dict(model.named_parameters())
    return {
        name: part.detach().clone(memory_format=torch.contiguous_format)
        for entry in entries
        for name, part in zip(entry.theirs, entry.give(parameters[entry.ours]), strict=True)
    }


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shapes of a peer's tensors or arrays, by name."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}


def tensor(value: Any) -> Tensor:
    """A numpy array or a tensor as a tensor."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
