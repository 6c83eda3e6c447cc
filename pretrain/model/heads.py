"""From the tokens of an image to one vector, and from that to class scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import pool_attention
from .block import ACTIVATIONS, Mlp
from .init import constant, normal, reset, xavier_uniform, zeros
from .norm import build_norm
from .packing import Packing


class LinearHead(nn.Linear):
    """One linear layer that begins at zero: the head for fine-tuning (arXiv 2010.11929, section 3.2).

    (B, embed_dim) -> (B, num_classes). first_bias: the initial value of its bias.
    """

    def __init__(self, embed_dim: int, num_classes: int, first_bias: float = 0.0) -> None:
        super().__init__(embed_dim, num_classes)
        self.init_rules = {"weight": zeros, "bias": constant(first_bias)}
        reset(self)


class MlpHead(nn.Module):
    """Linear, activation, Linear: the head for pretraining (arXiv 2010.11929, section 3.1).

    (B, embed_dim) -> (B, num_classes). The last layer begins with weight 0 and bias `first_bias`; if
    num_classes is 0 there is no last layer, and the result is (B, hidden).
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
        """The input of the last layer: (B, embed_dim) -> (B, hidden)."""
        return self.activation(self.fc1(x))


class Pooler(nn.Module):
    """tanh(Linear(x)), (B, D) -> (B, D), beside the head: transformers' models without a head have it."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(embed_dim, embed_dim)
        self.init_rules = {"dense.weight": xavier_uniform(), "dense.bias": zeros}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class AttentionPool(nn.Module):
    """A learned query (the probe) attends to all tokens of an image; then x + MLP(norm x).

    (T, n, D) -> (B, D), both in packed order. This is the multi-head attention pooling of arXiv 2106.04560,
    section 3.2, over all tiles of an image.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(embed_dim))
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = build_norm(norm, embed_dim, norm_eps)
        self.mlp = Mlp(embed_dim, mlp_dim, activation)
        self.init_rules = {
            "probe": normal(embed_dim**-0.5),
            "q.weight": xavier_uniform(),
            "q.bias": zeros,
            "kv.weight": xavier_uniform(parts=2),
            "kv.bias": zeros,
            "proj.weight": xavier_uniform(),
            "proj.bias": zeros,
        }
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        q = self.q(self.probe.to(x.dtype)).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        x = self.proj(pool_attention(q.expand(packing.images, -1, -1), k, v, packing).flatten(1))
        return x + self.mlp(self.norm(x))


def in_full(logits: Tensor) -> Tensor:
    """Logits in float32; those in float64 stay as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
