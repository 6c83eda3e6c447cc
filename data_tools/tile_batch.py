"""A batch of images: the tiles of all images one after the other, without padding tiles."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read, and why."""

    sample: int
    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class TileBatch:
    """B images cut into T tiles in total; the tiles of an image lie together, row by row.

    tiles: uint8 (T, C, S, S).
    tiles_per_image: int64 (B,), its sum is T.
    grid: int64 (B, 2), rows and columns of tiles.
    labels: int64 (B,), -1 for none; int64 (B, N) where images have several, filled up with -1; or
    float32 (B, N), numbers to predict.
    weight: float32 (B,), 0 for an image that does not count in an evaluation.
    position: int64 (B,), the position in the endless stream of images; in evaluation as `sample`.
    sample: int64 (B,), the number of the sample in the shards.
    bad: the samples that could not be read.
    partner_labels: as labels, of the image that mixup or CutMix mixed in.
    mix: float32 (B,), the weight of the image's own labels, 1 where nothing was mixed in.

    tiles_per_image and grid always stay on the CPU: the model takes its shapes from them and need not
    wait for the device.
    """

    tiles: Tensor
    tiles_per_image: Tensor
    grid: Tensor
    labels: Tensor
    weight: Tensor
    position: Tensor
    sample: Tensor
    bad: tuple[BadSample, ...] = field(default=())
    partner_labels: Tensor = None  # type: ignore[assignment]  # the own labels unless given
    mix: Tensor = None  # type: ignore[assignment]  # ones unless given

    def __post_init__(self) -> None:
        if self.mix is None:
            object.__setattr__(self, "partner_labels", self.labels)
            object.__setattr__(self, "mix", torch.ones_like(self.weight))

    def __len__(self) -> int:
        return len(self.tiles_per_image)

    def pinned(self) -> TileBatch:
        """The same batch; all that to() copies is in pinned memory, so that to() need not wait."""
        labels = self.labels.pin_memory()
        unmixed = self.partner_labels is self.labels
        return replace(
            self,
            tiles=self.tiles.pin_memory(),
            labels=labels,
            weight=self.weight.pin_memory(),
            partner_labels=labels if unmixed else self.partner_labels.pin_memory(),
            mix=self.mix.pin_memory(),
        )

    def to(self, device: torch.device | str) -> TileBatch:
        """The same batch with tiles, labels and weights on `device`. Returns before pinned memory is copied.

        Where nothing was mixed, partner_labels and labels stay one tensor.
        """
        labels = self.labels.to(device, non_blocking=True)
        unmixed = self.partner_labels is self.labels
        return replace(
            self,
            tiles=self.tiles.to(device, non_blocking=True),
            labels=labels,
            weight=self.weight.to(device, non_blocking=True),
            partner_labels=labels if unmixed else self.partner_labels.to(device, non_blocking=True),
            mix=self.mix.to(device, non_blocking=True),
        )


def checksum(batch: TileBatch) -> list[int]:
    """The crc32 of the tile bytes of each image, B numbers; they show which pixels were delivered."""
    images = batch.tiles.cpu().split(batch.tiles_per_image.tolist())
    return [zlib.crc32(image.contiguous().numpy()) for image in images]
