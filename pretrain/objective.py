"""The losses that training minimises, and what an evaluation measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools.tile_batch import TileBatch

from .config.schema import ObjectiveConfig


def softmax(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each image, (B,), with label smoothing (1512.00567, section 7).

    logits: (B, classes); labels: (B,). The target is 1 - smoothing on the label, plus smoothing / classes on
    every class.
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def sigmoid(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Binary cross-entropy of each image, (B,), summed over the classes (AugReg, 2106.10270, section 3.3).

    logits: (B, classes). labels: (B,), or (B, N) for up to N labels an image; -1 fills the rest of a row.
    smoothing: as for `softmax`.
    """
    targets = multi_hot(labels, logits.shape[-1]).to(logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """bool (B, classes), True at the labels of each image. labels: (B,) or (B, N), -1 for none."""
    rows = labels if labels.ndim == 2 else labels[:, None]
    # -1 goes to one class more, which is cut off.
    slots = torch.where(rows < 0, classes, rows)
    hot = torch.zeros(len(rows), classes + 1, dtype=torch.bool, device=rows.device)
    return hot.scatter_(1, slots, True)[:, :classes]


def regression(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Squared error of each image, (B,), averaged over the outputs (B, outputs).

    labels: numbers, (B,) or (B, outputs). smoothing: not used.
    """
    return (outputs - labels.to(outputs.dtype).view_as(outputs)).square().mean(-1)


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "regression": regression,
}

Measure = Callable[[Tensor, TileBatch], dict[str, Tensor]]


def build_objective(config: ObjectiveConfig) -> Callable[[Tensor, TileBatch], Tensor]:
    """loss(outputs of the model (B, outputs), batch) -> weighted loss of each image, (B,), fp32.

    An image that is mixed with another has the losses of both labels, weighted as the images are (mixup,
    1710.09412, section 2; CutMix, 1905.04899, eq. 1). With masked_patches the model computes its losses, as
    only the model knows which patches are masked.
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
    """measure(outputs of the model (B, outputs), batch) -> {name: value of each image, (B,)}.

    name: of the objective. regression: loss, and mae, the mean absolute error. masked_patches: loss, and
    colours, the share guessed right. With classes: loss, top1, and with more than 5 classes top5; the loss is
    the objective's, without smoothing. A prediction is right if it is one of the image's labels.
    """
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "softmax": _one_of,
        "sigmoid": partial(sigmoid, smoothing=0.0),
    }
    if name in losses:
        return partial(_guesses, losses[name])
    return {"regression": _errors, "masked_patches": _colours}[name]


def probabilities(outputs: Tensor, name: str) -> Tensor:
    """What outputs (..., classes) of a model say about each class; name: of its objective.

    softmax: probabilities that sum to 1; sigmoid: one of each class by itself. The outputs of the other
    objectives are no scores of classes and come back unchanged.
    """
    if name == "softmax":
        return outputs.softmax(-1)
    return outputs.sigmoid() if name == "sigmoid" else outputs


def _guesses(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    logits, classes = logits.float(), logits.shape[-1]
    hits = multi_hot(batch.labels, classes).gather(1, logits.topk(min(5, classes)).indices)
    found = {"loss": loss(logits, batch.labels), "top1": hits[:, 0]}
    return found | ({"top5": hits.any(1)} if classes > 5 else {})


def _one_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the log of the probability that the class is one of the image's labels; 0 without labels.

    With one label this is the cross-entropy.
    """
    if labels.ndim == 1:
        return softmax(logits, labels, 0.0)
    hot = multi_hot(labels, logits.shape[-1])
    right = logits.log_softmax(-1).masked_fill(~hot, -torch.inf).logsumexp(-1)
    return torch.where(hot.any(-1), -right, 0.0)


def _errors(outputs: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    outputs = outputs.float()
    error = outputs - batch.labels.to(outputs.dtype).view_as(outputs)
    return {"loss": error.square().mean(-1), "mae": error.abs().mean(-1)}


def _colours(outputs: Tensor, batch: TileBatch) -> dict[str, Tensor]:
    return {"loss": outputs[:, 0], "colours": outputs[:, 1]}
