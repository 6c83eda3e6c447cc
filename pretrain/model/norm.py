"""The norms of a model: layer norm (arXiv 1607.06450), or root mean square norm (arXiv 1910.07467)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + eps) · weight, without a mean and a bias."""

    def forward(self, x: Tensor) -> Tensor:
        # torch has a fused kernel only for one type; autocast makes such an x of layer norms float32 too.
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


def build_norm(kind: str, width: int, eps: float) -> nn.LayerNorm | RMSNorm:
    """A norm over the last dimension; kind: `layer` or `rms`, as model.norm."""
    return RMSNorm(width, eps=eps) if kind == "rms" else nn.LayerNorm(width, eps=eps)
