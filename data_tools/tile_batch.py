"""A batch of images as their real tiles, one behind the other: there is no padding tile."""

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

    tiles: uint8 (T, C, S, S); tiles_per_image: int64 (B,), its sum is T; grid: int64 (B, 2), rows
    and columns; labels: int64 (B,), -1 for none, or (B, N) where images have several, the rows
    filled up with -1, or float32 (B, N), numbers to predict; weight: float32 (B,), 0 for an image
    that only fills an evaluation batch;
    position: int64 (B,), the position in the endless stream of images (the sample's number in
    evaluation); sample: int64 (B,), the sample's number in the shards; partner_labels: as labels, of
    the image that mixup or CutMix mixed in; mix: float32 (B,), the weight of the image's own
    labels, 1 where nothing was mixed in.

    tiles_per_image and grid stay on the CPU wherever the tiles are: the model reads its shapes from
    them without waiting for the device.
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
        """The same batch; what `to` copies lies in pinned memory, from where a copy makes nobody wait."""
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
        """The same batch, tiles, labels and weights on `device`; pinned copies overlap.

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
    """The crc32 of each image's tile bytes, (B,): proves which pixels were delivered."""
    images = batch.tiles.cpu().split(batch.tiles_per_image.tolist())
    return [zlib.crc32(image.contiguous().numpy()) for image in images]
