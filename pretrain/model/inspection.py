"""A look into a Classifier: everything between the images and the logits, at a price paid only here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools.tile_batch import TileBatch

from .heads import MlpHead, in_full
from .packing import Packing

if TYPE_CHECKING:
    from .classifier import Classifier


@dataclass(frozen=True)
class Inspection:
    """B images of T tiles in all (T = B with one tile each), in the order of the batch.

    logits: (B, num_classes). tokens: (T, n, D), behind the last norm; class token and registers
    stand before the patches. pooled: (B, D), what the Pooler makes of an image, or, without one, what
    the head's last layer sees. hidden_states: (T, n, D) each, what the first block sees and what each
    block gives. attentions: (B, heads, N, N) for each block, rows are queries, N the tokens of the
    longest image; an image with less has zeros behind its own.
    """

    logits: Tensor
    tokens: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


class AttentionMaps:
    """`attention` that keeps the weights it computes with.

    layers: (B, heads, N, N) for each call, softmax(q kᵀ / √d) in the order of the batch, N the
    tokens of the longest image; what an image lacks to N is 0. head_mask: (layers, heads), factors of
    the heads' weights.
    """

    def __init__(self, head_mask: Tensor | None = None) -> None:
        self.head_mask = head_mask
        self.layers: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        longest = packing.groups[-1][1] * packing.tokens_per_tile
        lengths = [count * tiles * packing.tokens_per_tile for count, tiles in packing.groups]
        factor = None if self.head_mask is None else self.head_mask[len(self.layers)][:, None, None]
        results, maps = [], []
        for (count, _), *qkv in zip(packing.groups, *(x.split(lengths) for x in (q, k, v)), strict=True):
            q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in qkv)
            weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
            weights = weights if factor is None else weights * factor
            results.append((weights @ v).transpose(1, 2).flatten(0, 1))
            maps.append(F.pad(weights, (0, longest - weights.shape[-1], 0, longest - weights.shape[-2])))
        self.layers.append(packing.unpack_images(torch.cat(maps)))
        return torch.cat(results)


def inspect(
    model: Classifier,
    batch: TileBatch | Tensor,
    mask: Tensor | None = None,
    head_mask: Tensor | None = None,
) -> Inspection:
    """Run `model` and keep what it computes on the way.

    batch: as `Classifier.forward`. mask: bool (T, patches), True where the model's mask token takes
    the place of a patch. head_mask: (heads,) or (layers, heads), factors of the attention weights, 0
    to leave out a head. ValueError for other shapes, or for a mask that the model has no token for.
    """
    encoder = model.encoder
    tiles, packing = model.unpack(batch)
    maps = AttentionMaps(None if head_mask is None else _for_layers(head_mask, encoder.layers))
    packing = replace(packing, watch=maps)
    x = encoder.embed(tiles, packing, None if mask is None else packing.pack(_checked(mask, tiles)))
    hidden_states = [x]
    for block in encoder.layers:
        x = block(x, packing)
        hidden_states.append(x)
    tokens = encoder.finish(x, packing)
    pooled = model.pooled(tokens, packing)
    logits = in_full(model.head(pooled))
    if model.pooler is not None:
        pooled = model.pooler(pooled)
    elif isinstance(model.head, MlpHead):
        pooled = model.head.features(pooled)
    return Inspection(
        logits=logits,
        tokens=packing.unpack(tokens),
        pooled=pooled,
        hidden_states=tuple(map(packing.unpack, hidden_states)),
        attentions=tuple(maps.layers),
    )


def _checked(mask: Tensor, tiles: Tensor) -> Tensor:
    if mask.ndim != 2 or len(mask) != len(tiles):
        raise ValueError(f"mask must be bool ({len(tiles)}, patches), got {mask.dtype} {tuple(mask.shape)}")
    return mask


def _for_layers(head_mask: Tensor, layers: torch.nn.ModuleList) -> Tensor:
    shape = (len(layers), layers[0].attn.num_heads)
    if tuple(head_mask.shape) not in (shape, shape[1:]):
        raise ValueError(f"head_mask must be {shape[1:]} or {shape}, got {tuple(head_mask.shape)}")
    return head_mask.expand(shape)


class Rollout:
    """`attention` that follows the tokens through the blocks: attention rollout (arXiv 2005.00928, eq. 1; as
    in 2010.11929, appendix D.8).

    flow: (B, N, N), how much of each token behind the blocks so far comes from each token before them,
    in the order of the batch; a row sums to 1. N the tokens of the longest image.
    """

    def __init__(self) -> None:
        self._maps = AttentionMaps()
        self.flow = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        result = self._maps(q, k, v, packing)
        weights = self._maps.layers.pop().float().mean(1)
        through = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2  # with the residual
        with torch.autocast(through.device.type, enabled=False):
            self.flow = through @ self.flow if self.flow.numel() else through
        return result

    def patches(self, model: Classifier, image: int, rows: int, columns: int) -> Tensor:
        """Of one image of the batch, of rows x columns tiles: how much of what is pooled comes from each
        patch, (rows · patches down a tile, columns · patches across).
        """
        tiles, prefix, (down, across) = rows * columns, model.encoder.prefix, model.geometry.grid
        own = tiles * model.encoder.tokens_per_tile
        flow = self.flow[image, :own, :own].unflatten(0, (tiles, -1)).unflatten(-1, (tiles, -1))
        pooled = flow[:, 0] if model.config.pool == "cls" else flow[:, prefix:].mean(1)
        patches = pooled.mean(0)[:, prefix:].unflatten(-1, (down, across)).unflatten(0, (rows, columns))
        return patches.transpose(1, 2).flatten(2, 3).flatten(0, 1)


@contextmanager
def rolled_out(model: Classifier) -> Iterator[Rollout]:
    """Within it a forward of `model` is followed, however the model is wrapped."""
    model.watch = found = Rollout()
    yield found
    model.watch = None
