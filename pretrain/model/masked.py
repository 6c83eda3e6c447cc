"""Pretraining without labels: the mean colours of corrupted patches (arXiv 2010.11929, appendix B.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_tools.random_numbers import Stream, uniform
from data_tools.tile_batch import TileBatch

from ..config.schema import ModelConfig
from .encoder import Pixels, build_encoder, geometry_of, pooled_norm
from .heads import LinearHead
from .packing import Packing, Watch, to_device
from .variants import COLOURS, corrupted, resolve

MASKED, SWAPPED = 0.8, 0.1  # of the corrupted ones; the others stay as they are


@dataclass(frozen=True)
class Corruption:
    """What is done to the patches of a batch, numbered through its tiles in packed order.

    chosen: int64 (K,) the corrupted patches, those of an image together; masked: those of them that
    the mask token replaces; swapped, taken_from: those that another patch of their image replaces,
    and which; per_image: how many of an image of the n-th length, as in Packing.groups.
    """

    chosen: Tensor
    masked: Tensor
    swapped: Tensor
    taken_from: Tensor
    per_image: tuple[int, ...]


def corruption(batch: TileBatch, groups: Sequence[tuple[int, int]], patches: int, seed: int) -> Corruption:
    """A pure function of (seed, position) for each image, so that no number of processes changes it.

    groups: (images, tiles of each) of the batch's Packing; patches: of a tile.
    """
    packed = torch.sort(batch.tiles_per_image, stable=True).indices
    positions = batch.position[packed].numpy()
    chosen, kinds, others, per_image = [], [], [], []
    image, begin = 0, 0
    for count, tiles in groups:
        n = tiles * patches
        half = corrupted(n)
        draws = uniform(seed, Stream.MASK, positions[image : image + count, None], np.arange(3 * n))
        ranked, kind, other = np.split(draws, 3, axis=1)
        own = np.argsort(ranked, axis=1, kind="stable")[:, :half]
        first = begin + n * np.arange(count)[:, None]
        chosen.append(first + own)
        kinds.append(np.take_along_axis(kind, own, 1))
        step = 1 + np.floor(np.take_along_axis(other, own, 1) * (n - 1)).astype(np.int64)
        others.append(first + (own + step) % n)
        per_image.append(half)
        image, begin = image + count, begin + n * count
    where, kind, other = (np.concatenate([part.ravel() for part in x]) for x in (chosen, kinds, others))
    swapped = (kind >= MASKED) & (kind < MASKED + SWAPPED)
    parts = (where, where[kind < MASKED], where[swapped], other[swapped])
    return Corruption(*map(torch.from_numpy, parts), per_image=tuple(per_image))


class MaskedPatches(nn.Module):
    """Encoder and a linear head that says the 3-bit mean colour of every corrupted patch.

    Half of an image's patches are corrupted: of these 80 % become the mask token, 10 % another patch
    of the image, 10 % stay. Arguments as Classifier's. seed: of the corruption in training; in evaluation it
    is always the same.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        tile_size: int,
        max_tiles: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__()
        arch = resolve(config)
        self.config, self.tile_size, self.num_classes, self.seed = config, tile_size, COLOURS, seed
        self.watch: Watch | None = None
        self.pixels = Pixels(tuple(mean), tuple(std), max_tiles)
        self.geometry = geometry_of(arch, tile_size, max_tiles)
        self.encoder = build_encoder(config, arch, tile_size, self.geometry, in_channels=3, mask_token=True)
        self.pool_norm = pooled_norm(config, arch)
        self.head = LinearHead(arch.embed_dim, COLOURS)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def forward(self, batch: TileBatch) -> Tensor:
        """float32 (B, 2): of an image's corrupted patches the mean cross-entropy, and the share guessed.

        batch: uint8 tiles.
        """
        tiles, packing = self.pixels.unpack(batch, self.encoder, self.watch)
        rows, columns = self.geometry.grid
        plan = corruption(batch, packing.groups, rows * columns, self.seed if self.training else 0)
        chosen, masked, swapped, source = (
            to_device(part, tiles.device)
            for part in (plan.chosen, plan.masked, plan.swapped, plan.taken_from)
        )
        mask = torch.zeros(len(tiles) * rows * columns, dtype=torch.bool, device=tiles.device)
        mask = mask.index_fill(0, masked, True).unflatten(0, (len(tiles), -1))
        x, _ = self.encoder.encode(tiles, packing, mask, swap=(swapped, source))
        patches = self.pool_norm(x[:, self.encoder.prefix :]).flatten(0, 1)
        logits = self.head(patches.index_select(0, chosen)).float()
        colours = mean_colours(packing.pack(batch.tiles), rows, columns).flatten().index_select(0, chosen)
        losses = F.cross_entropy(logits, colours, reduction="none")
        right = (logits.argmax(-1) == colours).float()
        return _image_means(torch.stack([losses, right], -1), plan, packing)


def mean_colours(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """uint8 (T, 3, H, W) -> int64 (T, rows · columns): the mean of a patch, 3 bits for each channel."""
    height, width = tiles.shape[-2:]
    patches = tiles.float().unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # T C rows p columns p
    levels = torch.div(patches.sum((3, 5)), height // rows * (width // columns) * 32, rounding_mode="floor")
    red, green, blue = levels.long().unbind(1)
    return (red * 64 + green * 8 + blue).flatten(1)


def _image_means(values: Tensor, plan: Corruption, packing: Packing) -> Tensor:
    """(K, ...) -> (B, ...) in the order of the batch."""
    counts = [count * n for (count, _), n in zip(packing.groups, plan.per_image, strict=True)]
    parts = zip(values.split(counts), packing.groups, strict=True)
    means = [part.unflatten(0, (count, -1)).mean(1) for part, (count, _) in parts]
    return packing.unpack_images(torch.cat(means))
