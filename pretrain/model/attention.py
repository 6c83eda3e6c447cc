"""Attention within each image of a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.cuda.is_available():
    # Only where there is a GPU: elsewhere varlen_attn is never called, and importing it loads torch's
    # compiler, a third of the start-up time.
    from torch.nn.attention.varlen import varlen_attn

from .grouped import dense_attention, grouped_attention
from .packing import Packing


def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d) v among the tokens of each image (arXiv 1706.03762, eq. 1).

    q, k, v: (tokens of the batch, heads, d) in packed order; the result has the same shape. dropout: the
    share of the weights that is set to 0; no kernel for mixed lengths supports it.
    """
    if packing.watch is not None:
        return packing.watch(q, k, v, packing)
    if dropout:
        return _by_length(q, k, v, packing, dropout)
    compiling = torch.compiler.is_compiling()
    if packing.single or (not compiling and packing.uniform):
        # For a dense batch torch has more kernels to choose from. Compiled code asks only what the model
        # accepts (`single`), not what this batch holds (`uniform`), so that there is one graph.
        return dense_attention(q, k, v, packing.images)
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        longest = packing.max_length
        # ignore: it returns a tuple only if return_aux is given
        return varlen_attn(q, k, v, packing.offsets, packing.offsets, longest, longest)  # type: ignore[return-value]
    # varlen_attn supports neither the CPU nor float32: one dense call for each length.
    if compiling:
        return grouped_attention(q, k, v, packing.host_offsets)
    return _by_length(q, k, v, packing)


def _by_length(q: Tensor, k: Tensor, v: Tensor, packing: Packing, dropout: float = 0.0) -> Tensor:
    """`attention` by one dense call for each length."""
    counts = [count for count, _ in packing.groups]
    lengths = [count * tiles * packing.tokens_per_tile for count, tiles in packing.groups]
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), counts, strict=True)
    return torch.cat([dense_attention(*part, dropout) for part in parts])


def pool_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Attention of one query for each image over the tokens of that image.

    q: (B, heads, d); k, v: (T, n, heads, d) in packed order, n any number of tokens in each tile.
    Returns (B, heads, d).
    """
    tokens = k.shape[1]
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    if not packing.uniform and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        queries = torch.arange(packing.images + 1, dtype=torch.int32, device=q.device)
        keys = packing.offsets // packing.tokens_per_tile * tokens
        longest = packing.max_length // packing.tokens_per_tile * tokens
        return varlen_attn(q, k, v, queries, keys, 1, longest)  # type: ignore[return-value]  # as above
    counts = [count for count, _ in packing.groups]
    lengths = [count * tiles * tokens for count, tiles in packing.groups]
    parts = zip(q.split(counts), k.split(lengths), v.split(lengths), counts, strict=True)
    return torch.cat([dense_attention(*part) for part in parts])
