"""Attention that keeps each image of a packed batch to itself."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.cuda.is_available():
    # Not elsewhere, where nothing uses it: it imports the compiler, a third of a process's start-up.
    from torch.nn.attention.varlen import varlen_attn

from .grouped import dense_attention, grouped_attention
from .packing import Packing


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d) v among the tokens of each image (arXiv 1706.03762, eq. 1).

    q, k, v: (tokens of the batch, heads, d) in packed order; the result has their shape. dropout: the
    share of the weights that is left out; no kernel for mixed lengths offers it.
    """
    if packing.watch is not None:
        return packing.watch(q, k, v, packing)
    if dropout:
        return _by_length(q, k, v, packing, dropout)
    compiling = torch.compiler.is_compiling()
    if packing.single or (not compiling and packing.uniform):
        # A dense batch, for which torch has more kernels to choose from. Compiled, it depends on
        # what the model takes, not on what this batch holds, so that the graph stays one.
        return dense_attention(q, k, v, packing.images)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        longest = packing.max_length
        return varlen_attn(q, k, v, packing.offsets, packing.offsets, longest, longest)
    # varlen_attn knows neither the CPU nor float32: one dense call for each length.
    if compiling:
        return grouped_attention(q, k, v, packing.host_offsets)
    return _by_length(q, k, v, packing)


def _by_length(q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout: float = 0.0) -> Tensor:
    """`attention` by one dense call for each length."""
    lengths = [count * tiles * packing.tokens_per_tile for count, tiles in packing.groups]
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), packing.groups, strict=True)
    return torch.cat([dense_attention(*qkv, count, dropout) for *qkv, (count, _) in parts])


def pool_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """One query for each image, among the tokens of that image.

    q: (B, heads, d), k, v: (T, n, heads, d) in packed order, n any number of tokens of a tile;
    returns (B, heads, d).
    """
    tokens = k.shape[1]
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    if not packing.uniform and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        queries = torch.arange(packing.images + 1, dtype=torch.int32, device=q.device)
        keys = packing.offsets // packing.tokens_per_tile * tokens
        longest = packing.max_length // packing.tokens_per_tile * tokens
        return varlen_attn(q, k, v, queries, keys, 1, longest)
    counts = [count for count, _ in packing.groups]
    lengths = [count * tiles * tokens for count, tiles in packing.groups]
    parts = zip(q.split(counts), k.split(lengths), v.split(lengths), counts, strict=True)
    return torch.cat([dense_attention(*qkv, count) for *qkv, count in parts])
