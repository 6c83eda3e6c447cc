"""What is minimised, one loss per image, and what an evaluation measures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools.tile_batch import TileBatch

from .config.schema import ObjectiveConfig


def softmax(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against (1 - smoothing) on the label and smoothing spread over all classes."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def sigmoid(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over the classes of the binary cross-entropies (AugReg, 2106.10270, section 3.3).

    labels: (B,), or (B, N) for several labels an image, the row filled up with -1.
    """
    targets = multi_hot(labels, logits.shape[-1]).to(logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) or (B, N), -1 for none -> bool (B, classes)."""
    rows = labels if labels.ndim == 2 else labels[:, None]
    # The class behind the last takes what is -1, and is cut off.
    slots = torch.where(rows < 0, classes, rows)
    hot = torch.zeros(len(rows), classes + 1, dtype=torch.bool, device=rows.device)
    return hot.scatter_(1, slots, True)[:, :classes]


def regression(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean over the outputs of the squared errors. labels: numbers (B,) or (B, outputs)."""
    return (outputs - labels.to(outputs.dtype).view_as(outputs)).square().mean(-1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "regression": regression,
}

Measure = Callable[[Tensor, TileBatch], dict[str, Tensor]]


def build_objective(config: ObjectiveConfig) -> Callable[[Tensor, TileBatch], Tensor]:
    """loss(outputs of the model (B, classes), batch) -> weighted loss of each image (B,), fp32.

    An image into which another was mixed has the loss of both labels, in the proportion of the mixture
    (mixup, 1710.09412, section 2; CutMix, 1905.04899, eq. 1).
    A model for masked patches computes its losses itself, from which patches only it knows.
    """
    if config.name == "masked_patches":
        return lambda outputs, batch: outputs[:, 0] * batch.weight
    function = OBJECTIVES[config.name]

    def loss(logits: Tensor, batch: TileBatch) -> Tensor:
        logits = logits.float()
        own = function(logits, batch.labels, config.label_smoothing)
        if batch.partner_labels is not batch.labels:
            partner = function(logits, batch.partner_labels, config.label_smoothing)
            own = batch.mix * own + (1 - batch.mix) * partner
        return own * batch.weight

    return loss


def build_measure(name: str) -> Measure:
    """measure(outputs of the model, batch) -> for each image (B,) the loss and what else says how good it is.

    name: of the objective. With classes the loss is the softmax cross-entropy, or with several labels an
    image the sigmoid's, and a guess is right if it is one of the image's labels.
    """
    return {"regression": _errors, "masked_patches": _colours}.get(name, _guesses)


def _guesses(logits: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    """top5 only with more than 5 classes."""
    logits, classes = logits.float(), logits.shape[-1]
    function = sigmoid if batch.labels.ndim == 2 else softmax
    hits = multi_hot(batch.labels, classes).gather(1, logits.topk(min(5, classes)).indices)
    found = {"loss": function(logits, batch.labels, 0.0), "top1": hits[:, 0]}
    return found | ({"top5": hits.any(1)} if classes > 5 else {})


def _errors(outputs: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    outputs = outputs.float()
    error = outputs - batch.labels.to(outputs.dtype).view_as(outputs)
    return {"loss": error.square().mean(-1), "mae": error.abs().mean(-1)}


def _colours(outputs: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    return {"loss": outputs[:, 0], "colours": outputs[:, 1]}
