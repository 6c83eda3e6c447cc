"""Pretraining without labels: predict the mean colours of corrupted patches.

arXiv 2010.11929, appendix B.1.2.
"""

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

MASKED, SWAPPED = 0.8, 0.1  # shares of the corrupted patches; the others stay as they are


@dataclass(frozen=True)
class Corruption:
    """What is done to the patches of a batch, which are numbered through its tiles in packed order.

    chosen: int64 (K,), the corrupted patches, image by image; masked: those of them that the mask token
    replaces; swapped: those that another patch of their image replaces; taken_from: these other patches;
    per_image: how many patches of an image are corrupted, for each group of Packing.groups.
    """

    chosen: Tensor
    masked: Tensor
    swapped: Tensor
    taken_from: Tensor
    per_image: tuple[int, ...]


def corruption(batch: TileBatch, groups: Sequence[tuple[int, int]], patches: int, seed: int) -> Corruption:
    """The corruption of a batch. That of an image depends on (seed, position) only.

    So it is the same with any number of processes. groups: as in Packing; patches: of a tile.
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
    return Corruption(
        chosen=torch.from_numpy(where),
        masked=torch.from_numpy(where[kind < MASKED]),
        swapped=torch.from_numpy(where[swapped]),
        taken_from=torch.from_numpy(other[swapped]),
        per_image=tuple(per_image),
    )


class MaskedPatches(nn.Module):
    """An encoder and a linear head that predicts the mean colour of every corrupted patch, one of COLOURS.

    Half of an image's patches are corrupted: 80 % of them become the mask token, 10 % another patch
    of the image, 10 % stay as they are. Arguments as in Classifier. seed: of the corruption in training; in
    evaluation the corruption is always the same. The keys of `config` about pool and head have no effect,
    but config.pool decides as in Classifier whether there is a class token. Raises UsageError for a
    configuration that does not fit together.
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
        """The Transformer blocks, in order."""
        return self.encoder.layers

    def forward(self, batch: TileBatch) -> Tensor:
        """float32 (B, 2), over each image's corrupted patches: mean cross-entropy, share predicted rightly.

        batch: with uint8 tiles. ValueError for tiles or a grid that do not fit the model.
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
    """The mean colour of each patch: uint8 (T, 3, H, W) -> int64 (T, rows · columns), 3 bits per channel."""
    height, width = tiles.shape[-2:]
    patches = tiles.float().unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # T C rows p columns p
    levels = torch.div(patches.sum((3, 5)), height // rows * (width // columns) * 32, rounding_mode="floor")
    red, green, blue = levels.long().unbind(1)
    return (red * 64 + green * 8 + blue).flatten(1)


def _image_means(values: Tensor, plan: Corruption, packing: Packing) -> Tensor:
    """Means over each image's corrupted patches: (K, ...) -> (B, ...) in the order of the batch."""
    counts = [count * n for (count, _), n in zip(packing.groups, plan.per_image, strict=True)]
    parts = zip(values.split(counts), packing.groups, strict=True)
    means = [part.unflatten(0, (count, -1)).mean(1) for part, (count, _) in parts]
    return packing.unpack_images(torch.cat(means))
