"""The gated MLP of today's encoders (arXiv 2002.05202, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .init import normal, reset, xavier_uniform


class SwiGLU(nn.Module):
    """fc2(silu(a) · b), where a and b are the halves of fc1(x), with dropout as in `block.Mlp`.

    hidden: the width of a and of b.
    """

    def __init__(self, embed_dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.init_rules = {
            "fc1.weight": xavier_uniform(parts=2),
            "fc1.bias": normal(1e-6),
            "fc2.weight": xavier_uniform(),
            "fc2.bias": normal(1e-6),
        }
        reset(self)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, -1)
        return self.dropout(self.fc2(self.dropout(F.silu(gate) * value)))
