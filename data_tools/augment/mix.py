"""Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899) of finished batches.

Images 2k and 2k + 1 of a batch are a pair; each becomes a mixture of both. So micro-batches of even size
never separate a pair, and the pairs of a global batch are the same on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.errors import UsageError
from data_tools.images.tiles import tile_crop
from data_tools.random_numbers import Stream, uniform
from data_tools.tile_batch import TileBatch

_LEVELS = 256  # weights of mixup are multiples of 1/256, so that integers are enough to mix bytes
_KNOTS = 2049  # points of the quantile function

Tiles = NDArray[np.uint8]  # (n, C, S, S)


class Mix:
    """Mixes the pairs of a batch in place. Random numbers are a function of (seed, first image's position).

    A pair draws one weight w = max(x, 1 - x) with x ~ Beta(alpha, alpha), alpha = `mixup` or `cutmix`;
    both images keep the share w of themselves (big_vision's mixup draws one weight for the whole batch).
    Where both are on, each is used for half of the pairs. CutMix exchanges a box of the share 1 - w of
    the canvas; what lies outside of the canvas is cut off, and w becomes the exact share that is kept.
    Pairs whose grids differ are not mixed. UsageError for an alpha that is negative or not finite.
    """

    def __init__(self, seed: int, mixup: float, cutmix: float) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise UsageError(f"data.augment.{name}={alpha} must be 0 (off) or above.")
        self.seed = seed
        self._mixup = beta_quantiles(mixup) if mixup else None
        self._cutmix = beta_quantiles(cutmix) if cutmix else None

    def check(self, micro_batch_size: int) -> None:
        """UsageError for an odd micro-batch, which would separate a pair."""
        if micro_batch_size % 2:
            raise UsageError(
                f"train.micro_batch_size={micro_batch_size} is odd, but data.augment.mixup and cutmix mix "
                "pairs of images: make it even."
            )

    def __call__(
        self, batch: TileBatch, map_: Callable[[Callable, Sequence], list], pin: bool = False
    ) -> TileBatch:
        """The batch, its tiles mixed in place, with partner_labels and mix; `map_` may work in threads."""
        tiles, grids = batch.tiles.numpy(), batch.grid.tolist()
        ends = batch.tiles_per_image.cumsum(0).tolist()
        positions = batch.position.tolist()

        def mix(first: int) -> float:
            if grids[first] != grids[first + 1]:
                return 1.0
            start = ends[first] - grids[first][0] * grids[first][1]
            a, b = tiles[start : ends[first]], tiles[ends[first] : ends[first + 1]]
            return self._pair(a, b, grids[first], positions[first])

        weights = map_(mix, range(0, len(grids), 2))
        own = torch.tensor(weights).repeat_interleave(2)
        labels = batch.labels
        swapped = labels.view(len(weights), 2, -1).flip(1).view_as(labels)
        mixed = (own < 1).view(-1, *[1] * (labels.ndim - 1))
        partners = torch.where(mixed, swapped, labels)
        batch = replace(batch, partner_labels=partners, mix=own)
        return batch.pinned() if pin else batch

    def _pair(self, a: Tiles, b: Tiles, grid: Sequence[int], position: int) -> float:
        choice, quantile, down, right = uniform(self.seed, Stream.MIX, position, np.arange(4)).tolist()
        if self._mixup is not None and (self._cutmix is None or choice < 0.5):
            return _mixup(a, b, np.interp(quantile, *self._mixup))
        assert self._cutmix is not None, "one of the two is on"
        return _cutmix(a, b, grid, np.interp(quantile, *self._cutmix), down, right)


def beta_quantiles(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2049 points (p, q(p)) of the quantile function q of w = max(x, 1 - x), x ~ Beta(alpha, alpha).

    The density of w on [1/2, 1] is w^(alpha-1) (1-w)^(alpha-1) up to a factor; in s = (1-w)^alpha it is
    the bounded w^(alpha-1), which is summed here by the trapezoidal rule.
    """
    s = np.linspace(0.5**alpha, 0, _KNOTS)
    w = 1 - s ** (1 / alpha)
    density = w ** (alpha - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) * -np.diff(s))])
    return mass / mass[-1], w


def _mixup(a: Tiles, b: Tiles, weight: float) -> float:
    own = round(weight * _LEVELS)
    first, second = a.astype(np.uint16), b.astype(np.uint16)
    for tiles, mine, other in ((a, first, second), (b, second, first)):
        tiles[...] = (mine * own + other * (_LEVELS - own) + _LEVELS // 2) // _LEVELS
    return own / _LEVELS


def _cutmix(a: Tiles, b: Tiles, grid: Sequence[int], weight: float, down: float, right: float) -> float:
    size = a.shape[-1]
    canvas = np.zeros((1, grid[0] * size, grid[1] * size), bool)
    _, height, width = canvas.shape
    side = math.sqrt(1 - weight)
    top, left = (round(where * n - side * n / 2) for where, n in ((down, height), (right, width)))
    bottom, end = top + round(side * height), left + round(side * width)
    canvas[:, max(0, top) : max(0, bottom), max(0, left) : max(0, end)] = True
    inside = tile_crop(canvas, size)
    a[...], b[...] = np.where(inside, b, a), np.where(inside, a, b)
    return 1 - np.count_nonzero(canvas) / canvas.size
