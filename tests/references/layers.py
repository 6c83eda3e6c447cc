"""The layers of a Vision Transformer (arXiv 2010.11929, appendix A) and of its ResNet, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) (arXiv 1606.08415)."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of the same paper."""
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def dense(x: Tensor, w: Weights, name: str) -> Tensor:
    """x Wᵀ + b; without a bias where there is none."""
    x = x @ w[f"{name}.weight"].T
    return x + w[f"{name}.bias"] if f"{name}.bias" in w else x


def normalized(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis (arXiv 1607.06450)."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * scale + shift


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    return normalized(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries (B, N, D), keys and values (B, M, D) -> what each query sees, and the weights (B, heads, N, M).

    Each head has its own D / heads neighbouring channels (arXiv 1706.03762, section 3.2).
    """
    seen, maps = [], []
    for channels in torch.arange(q.shape[-1]).chunk(heads):
        scores = q[..., channels] @ k[..., channels].transpose(-1, -2) / math.sqrt(len(channels))
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        maps.append(weights / weights.sum(-1, keepdim=True))
        seen.append(maps[-1] @ v[..., channels])
    return torch.cat(seen, -1), torch.stack(maps, 1)


def convolve(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """(B, C, H, W), (O, C, h, w) -> (B, O, ...): only places where the whole kernel lies on the image."""
    rows, columns = ((side - k) // stride + 1 for side, k in zip(x.shape[2:], kernel.shape[2:], strict=True))
    result = x.new_zeros(len(x), len(kernel), rows, columns)
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            seen = x[
                :, :, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride
            ]
            result += torch.einsum("bchw,oc->bohw", seen, kernel[:, :, i, j])
    return result


def patches(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Images (B, C, H, W) -> patches (B, N, D), row by row, as the kernel (D, C, P, P) projects them."""
    tokens = convolve(x, kernel, kernel.shape[-1]).flatten(2).transpose(1, 2)
    return tokens if bias is None else tokens + bias


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around, as TensorFlow's SAME: ceil(side / stride) windows fit, the odd zero stands last."""
    added = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
    (top, left), (height, width) = (n // 2 for n in added), added
    return F.pad(x, (left, width - left, top, height - top))


def largest(x: Tensor, kernel: int, stride: int) -> Tensor:
    """The largest of each window that lies on the image."""
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[2:])
    windows = [
        x[:, :, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return torch.stack(windows).amax(0)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "silu": silu,
}
