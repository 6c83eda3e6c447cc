"""The Transformer block (arXiv 2010.11929, eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention import Packing, attention
from pretrain.model.init import normal, reset, xavier_uniform, zeros

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Attention(nn.Module):
    """Multi-head self-attention within each image: (T, n, D) -> (T, n, D)."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.init_rules = {
            "qkv.weight": xavier_uniform(parts=3),
            "proj.weight": xavier_uniform(),
            "proj.bias": zeros,
        } | ({"qkv.bias": zeros} if qkv_bias else {})
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        # unbind, not permute: its backward stacks the three gradients where the projection wants
        # them.
        q, k, v = self.qkv(x.flatten(0, 1)).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return self.proj(attention(q, k, v, packing).flatten(1)).view_as(x)


class Mlp(nn.Module):
    """Linear, activation, Linear, with dropout after each."""

    def __init__(self, embed_dim: int, hidden: int, activation: str = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.activation = ACTIVATIONS[activation]
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.init_rules = {
            "fc1.weight": xavier_uniform(),
            "fc1.bias": normal(1e-6),
            "fc2.weight": xavier_uniform(),
            "fc2.bias": normal(1e-6),
        }
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))


class Block(nn.Module):
    """x + attention(norm1 x), then x + MLP(norm2 x); x: (T, n, D) in packed order.

    drop_path: the share of images that skip a branch in training (stochastic depth, arXiv
    1603.09382).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: str = "gelu",
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, mlp_dim, activation, dropout)
        self.dropout = nn.Dropout(dropout)
        self.keep: Tensor | None = None
        if drop_path:
            self.set_drop_path(drop_path)

    def set_drop_path(self, rate: float) -> None:
        # A tensor even for 0, since torch.compile would make a graph for each block's own number;
        # on the CPU, from where a single number enters a kernel without a copy.
        self.keep = torch.tensor(1.0 - rate, device="cpu")

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        x = x + self._drop_path(self.dropout(self.attn(self.norm1(x), packing)), packing)
        return x + self._drop_path(self.mlp(self.norm2(x)), packing)

    def _drop_path(self, branch: Tensor, packing: Packing) -> Tensor:
        if not self.training or self.keep is None:
            return branch
        kept = (torch.rand(packing.images, device=branch.device) + self.keep).floor()
        return branch * (kept / self.keep).to(branch.dtype)[packing.image][:, None, None]
