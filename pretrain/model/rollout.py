"""Where in an image the answer comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pretrain.model.attention import Packing
from pretrain.model.inspection import AttentionMaps

if TYPE_CHECKING:
    from pretrain.model.classifier import Classifier


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
