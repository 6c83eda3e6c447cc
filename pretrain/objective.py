"""What is minimised: one loss per image, from logits and labels."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from data_tools.batch import TileBatch

from .config import ObjectiveConfig


def softmax(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against (1 - smoothing) on the label and smoothing spread over all classes."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def sigmoid(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over the classes of the binary cross-entropies (AugReg, 2106.10270, section 3.3)."""
    targets = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
}


def build_objective(config: ObjectiveConfig) -> Callable[[Tensor, TileBatch], Tensor]:
    """loss(logits (B, classes), batch) -> weighted loss of each image (B,), fp32."""
    function = OBJECTIVES[config.name]

    def loss(logits: Tensor, batch: TileBatch) -> Tensor:
        return function(logits.float(), batch.labels, config.label_smoothing) * batch.weight

    return loss
