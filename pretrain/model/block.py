"""The Transformer block (arXiv 2010.11929, eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention
from .init import constant, normal, reset, xavier_uniform, zeros
from .norm import build_norm
from .packing import Packing
from .swiglu import SwiGLU


def _gelu_tanh(x: Tensor) -> Tensor:  # no module, so that all copies of a block share one object
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "selu": F.selu,
    "tanh": torch.tanh,
}


class Attention(nn.Module):
    """Multi-head self-attention within each image: (T, n, D) -> (T, n, D).

    qk_norm: a norm over each head's queries and one over its keys (arXiv 2302.05442, section 2); norm: its
    kind. dropout: of the attention weights. Raises ValueError if the heads do not divide embed_dim.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        proj_bias: bool = True,
        dropout: float = 0.0,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.q_norm, self.k_norm = (
            build_norm(norm, embed_dim // num_heads, norm_eps) if qk_norm else None for _ in "qk"
        )
        self.proj = nn.Linear(embed_dim, embed_dim, bias=proj_bias)
        self.init_rules = {
            "qkv.weight": xavier_uniform(parts=3),
            "proj.weight": xavier_uniform(),
        }
        self.init_rules |= ({"qkv.bias": zeros} if qkv_bias else {}) | (
            {"proj.bias": zeros} if proj_bias else {}
        )
        reset(self)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        # unbind, not permute: its backward pass stacks the three gradients in the projection's layout.
        q, k, v = self.qkv(x.flatten(0, 1)).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            # Autocast computes norms in float32, but attention needs q, k and v in one type.
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if packing.rotation is not None:
            q, k = packing.rotation.turn(q), packing.rotation.turn(k)
        dropout = self.dropout if self.training else 0.0
        return self.proj(attention(q, k, v, packing, dropout).flatten(1)).view_as(x)


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


class LayerScale(nn.Module):
    """A learned factor for each channel, with initial value `first` (arXiv 2103.17239, section 2.1)."""

    def __init__(self, embed_dim: int, first: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(embed_dim))
        self.init_rules = {"gamma": constant(first)}
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm1 x), then x + MLP(norm2 x); x: (T, n, D) in packed order.

    drop_path: the share of images that skip a branch in training (stochastic depth, arXiv
    1603.09382). layer_scale: the initial value of a LayerScale at the end of each branch; None: none.
    parallel: x + attention(norm1 x) + MLP(norm1 x), both skipped together (arXiv 2302.05442,
    section 2). qkv_bias, proj_bias: whether attention's projections have biases. norm: `layer` or `rms`.
    mlp: `plain`, or `swiglu`, which has no other activation.
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
        qk_norm: bool = False,
        layer_scale: float | None = None,
        parallel: bool = False,
        proj_bias: bool = True,
        attention_dropout: float = 0.0,
        norm: str = "layer",
        mlp: str = "plain",
    ) -> None:
        super().__init__()
        self.norm1 = build_norm(norm, embed_dim, norm_eps)
        self.attn = Attention(
            embed_dim, num_heads, qkv_bias, qk_norm, norm_eps, proj_bias, attention_dropout, norm
        )
        self.norm2 = None if parallel else build_norm(norm, embed_dim, norm_eps)
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale) for _ in (1, 2)
        )
        self.mlp = (
            SwiGLU(embed_dim, mlp_dim, dropout)
            if mlp == "swiglu"
            else Mlp(embed_dim, mlp_dim, activation, dropout)
        )
        self.dropout = nn.Dropout(dropout)
        self.keep: Tensor | None = None
        if drop_path:
            self.set_drop_path(drop_path)

    def set_drop_path(self, rate: float) -> None:
        """Skip a branch for this share of the images, in [0, 1)."""
        # A tensor, even for 0: torch.compile would make a graph for each block's own number. On the CPU:
        # kernels take a single number from there without a copy.
        self.keep = torch.tensor(1.0 - rate, device="cpu")

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        normed = self.norm1(x)
        attended = self.ls1(self.dropout(self.attn(normed, packing)))
        if self.norm2 is None:
            return x + self._drop_path(attended + self.ls2(self.mlp(normed)), packing)
        x = x + self._drop_path(attended, packing)
        return x + self._drop_path(self.ls2(self.mlp(self.norm2(x))), packing)

    def _drop_path(self, branch: Tensor, packing: Packing) -> Tensor:
        if not self.training or self.keep is None:
            return branch
        kept = (torch.rand(packing.images, device=branch.device) + self.keep).floor()
        return branch * (kept / self.keep).to(branch.dtype)[packing.image][:, None, None]
