"""From the pooled representation of an image to class scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.block import ACTIVATIONS
from pretrain.model.init import constant, reset, xavier_uniform, zeros


class LinearHead(nn.Linear):
    """One linear layer from zero: the head for fine-tuning (arXiv 2010.11929, section 3.2)."""

    def __init__(self, embed_dim: int, num_classes: int, first_bias: float = 0.0) -> None:
        super().__init__(embed_dim, num_classes)
        self.init_rules = {"weight": zeros, "bias": constant(first_bias)}
        reset(self)


class MlpHead(nn.Module):
    """Linear, activation, Linear: the head for pretraining (arXiv 2010.11929, section 3.1).

    The last layer begins at weight zero and bias `first_bias`; without classes there is none.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden: int,
        num_classes: int,
        activation: str = "tanh",
        first_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.activation = ACTIVATIONS[activation]
        self.fc2 = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()
        last = {"fc2.weight": zeros, "fc2.bias": constant(first_bias)} if num_classes else {}
        self.init_rules = {"fc1.weight": xavier_uniform(), "fc1.bias": zeros} | last
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees."""
        return self.activation(self.fc1(x))


class Pooler(nn.Module):
    """tanh(Linear(x)) beside the head, as transformers' models without a head have it."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.init_rules = {"dense.weight": xavier_uniform(), "dense.bias": zeros}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))
