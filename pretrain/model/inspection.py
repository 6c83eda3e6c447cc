"""What a model computes between the images and the outputs. It costs nothing where it is not used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_tools.tile_batch import TileBatch

from .block import Block
from .build import Model
from .classifier import Classifier
from .heads import MlpHead, in_full
from .packing import Packing


@dataclass(frozen=True)
class Inspection:
    """What a Classifier computes for B images of T tiles in total, in the order of the batch.

    logits: (B, num_classes). tokens: (T, n, D), behind the last norm; class token and registers
    stand before the patches. pooled: (B, D), the Pooler's output, or, without a Pooler, the input of the
    head's last layer. hidden_states: (T, n, D) each, the first block's input and each block's output.
    attentions: (B, heads, N, N) for each block; rows are queries, N is the number of tokens of the
    longest image; shorter images are filled up with zeros.
    """

    logits: Tensor
    tokens: Tensor
    pooled: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


class AttentionMaps:
    """Computes `attention` and keeps the weights.

    layers: for each call (B, heads, N, N), softmax(q kᵀ / √d) in the order of the batch; N is the number
    of tokens of the longest image, and shorter images are filled up with zeros. head_mask: (layers,
    heads), factors of the heads' weights.
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

    batch: as in `Classifier.forward`. mask: bool (T, patches), True where the model's mask token replaces
    a patch. head_mask: (heads,) or (layers, heads), factors of the attention weights; 0 leaves out a head.
    ValueError for other shapes, or for a mask if the model has no mask token.
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


def features(model: Classifier, batch: TileBatch | Tensor, layer: int | None = None) -> Tensor:
    """One vector for each image, float32 (B, D).

    layer: None for the head's input; else a number of Inspection.hidden_states, -1 for the last block's
    output, of which it is the mean over the image's class tokens where model.pool=cls, else over its patches,
    without the last norm.
    ValueError for a layer that the model does not have.
    """
    if layer is None:
        return in_full(model.represent(batch))
    encoder = model.encoder
    depth = len(encoder.layers)
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer must be {-depth - 1} to {depth}, got {layer}")
    tiles, packing = model.unpack(batch)
    x = encoder.embed(tiles, packing)
    for block in encoder.layers[: layer % (depth + 1)]:
        x = block(x, packing)
    tokens = x[:, 0] if model.config.pool == "cls" else x[:, encoder.prefix :].mean(1)
    return in_full(packing.image_means(tokens))


def _checked(mask: Tensor, tiles: Tensor) -> Tensor:
    if mask.ndim != 2 or len(mask) != len(tiles):
        raise ValueError(f"mask must be bool ({len(tiles)}, patches), got {mask.dtype} {tuple(mask.shape)}")
    return mask


def _for_layers(head_mask: Tensor, layers: nn.ModuleList) -> Tensor:
    first = layers[0]
    assert isinstance(first, Block)
    shape = (len(layers), first.attn.num_heads)
    if tuple(head_mask.shape) not in (shape, shape[1:]):
        raise ValueError(f"head_mask must be {shape[1:]} or {shape}, got {tuple(head_mask.shape)}")
    return head_mask.expand(shape)


class Rollout:
    """Computes `attention` and attention rollout (arXiv 2005.00928, eq. 1; as in 2010.11929, appendix D.8).

    flow: (B, N, N) in the order of the batch: how much of each token (row) behind the last block computed
    comes from each token (column) before the first; a row sums to 1. N: tokens of the longest image.
    """

    def __init__(self) -> None:
        self._maps = AttentionMaps()
        self.flow = torch.empty(0)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        result = self._maps(q, k, v, packing)
        weights = self._maps.layers.pop().float().mean(1)
        # Half of each token comes through attention, half past it by the residual connection.
        through = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2
        with torch.autocast(through.device.type, enabled=False):
            self.flow = through @ self.flow if self.flow.numel() else through
        return result

    def patches(self, model: Model, image: int, rows: int, columns: int) -> Tensor:
        """How much of what `model` pools comes from each patch, for one image of the batch.

        rows, columns: of its tiles. Returns (rows · patches down a tile, columns · patches across a tile).
        """
        tiles, prefix, (down, across) = rows * columns, model.encoder.prefix, model.geometry.grid
        own = tiles * model.encoder.tokens_per_tile
        flow = self.flow[image, :own, :own].unflatten(0, (tiles, -1)).unflatten(-1, (tiles, -1))
        pooled = flow[:, 0] if model.config.pool == "cls" else flow[:, prefix:].mean(1)
        patches = pooled.mean(0)[:, prefix:].unflatten(-1, (down, across)).unflatten(0, (rows, columns))
        return patches.transpose(1, 2).flatten(2, 3).flatten(0, 1)


@contextmanager
def rolled_out(model: Model) -> Iterator[Rollout]:
    """Inside this context one forward pass of `model`, or of what wraps it, fills the Rollout."""
    model.watch = found = Rollout()
    yield found
    model.watch = None
