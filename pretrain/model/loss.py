"""The loss of a classifier as transformers' models compute it, for those who train with its Trainer.

Training here uses pretrain/objective.py, whose sigmoid sums over the classes instead of averaging.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


class Output(dict[str, Tensor]):
    """loss, where labels were given, and logits: by name, as attributes and by number."""

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: Any) -> Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of logits (B, classes), by what the labels are.

    One output: mean square error of numbers (B,) or (B, 1). Integers (B,): cross entropy. Otherwise (B,
    classes) of 0 and 1: binary cross entropy, averaged over images and classes. ValueError for another shape.
    """
    if logits.shape[1] == 1 and labels.numel() == len(logits):
        return F.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
    if labels.ndim == 1 and not labels.is_floating_point() and len(labels) == len(logits):
        return F.cross_entropy(logits, labels.long())
    if labels.shape == logits.shape:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits of {tuple(logits.shape)}")
