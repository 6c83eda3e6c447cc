"""Attention for images of a few different lengths: one dense call for each length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor, images: int, dropout: float = 0.0) -> Tensor:
    """Attention within each of `images` images of equal length.

    q, k, v and the result: (tokens, heads, d), the tokens of an image one after the other.
    """
    q, k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(0, 1)


@torch.library.custom_op("vit_pretrain::grouped_attention", mutates_args=())
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Attention within each image as one operator, so that torch.compile's graph fits any mix of lengths.

    q, k, v and the result: (tokens, heads, d). offsets: int32 (B + 1,) on the CPU, the first token of each
    image; lengths ascending.
    """
    return torch.cat([dense_attention(q[rows], k[rows], v[rows], count) for rows, count in _groups(offsets)])


@grouped_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("vit_pretrain::grouped_attention_backward", mutates_args=())
def grouped_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from that of the result of `grouped_attention`."""
    parts = []
    for rows, count in _groups(offsets):
        g, q_, k_, v_ = (x[rows].unflatten(0, (count, -1)).transpose(1, 2) for x in (gradient, q, k, v))
        scale = q.shape[-1] ** -0.5
        weights = (q_ @ k_.mT * scale).softmax(-1)
        slope = g @ v_.mT
        scores = weights * (slope - (slope * weights).sum(-1, keepdim=True)) * scale
        parts.append([x.transpose(1, 2).flatten(0, 1) for x in (scores @ k_, scores.mT @ q_, weights.mT @ g)])
    dq, dk, dv = (torch.cat(part) for part in zip(*parts, strict=True))
    return dq, dk, dv


@grouped_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *grouped_attention_backward(gradient, *ctx.saved_tensors), None


grouped_attention.register_autograd(_gradients, setup_context=_save)


def _groups(offsets: Tensor) -> Iterator[tuple[slice, int]]:
    """For each length: where its tokens lie, and how many images have it."""
    lengths, counts = torch.unique_consecutive(offsets.diff(), return_counts=True)
    end = 0
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        begin, end = end, end + length * count
        yield slice(begin, end), count
