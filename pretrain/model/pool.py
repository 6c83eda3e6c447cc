"""From the tokens of an image's tiles to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.model.attention import Packing, pool_attention
from pretrain.model.block import Mlp
from pretrain.model.init import normal, reset, xavier_uniform, zeros


class AttentionPool(nn.Module):
    """A learned probe attends to all tokens of an image; then x + MLP(norm x).

    (T, n, D) in packed order -> (B, D) in packed order. The multi-head attention pooling of arXiv
    2106.04560, section 3.2, over as many tiles as the image has.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_dim: int, activation: str = "gelu", norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(embed_dim))
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
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
