"""timm's ParallelScalingBlock: attention and MLP side by side behind one norm and one layer `in_proj`."""

from __future__ import annotations

from typing import Any

import torch

from .entries import Weights, tensor

# timm's names -> those of its Block, where the tensor is the same.
SAME = {
    "in_norm.weight": ("norm1.weight",),
    "in_norm.bias": ("norm1.bias",),
    "q_norm.weight": ("attn.q_norm.weight",),
    "q_norm.bias": ("attn.q_norm.bias",),
    "k_norm.weight": ("attn.k_norm.weight",),
    "k_norm.bias": ("attn.k_norm.bias",),
    "attn_out_proj.weight": ("attn.proj.weight",),
    "attn_out_proj.bias": ("attn.proj.bias",),
    "mlp_out_proj.weight": ("mlp.fc2.weight",),
    "mlp_out_proj.bias": ("mlp.fc2.bias",),
    "mlp_bias": ("mlp.fc1.bias",),
    "ls.gamma": ("ls1.gamma", "ls2.gamma"),
}


def as_blocks(weights: Weights, width: int, mlp: int) -> dict[str, Any]:
    """The weights under the names of timm's Block; its one layer in_proj becomes mlp.fc1 and attn.qkv.

    width, mlp: of the model. ValueError for an in_proj of another size.
    """
    found: dict[str, Any] = {}
    for name, value in weights.items():
        block, rest = _split(name)
        if block is None:
            found[name] = value
        elif rest in ("in_proj.weight", "in_proj.bias"):
            whole = tensor(value)
            if len(whole) != mlp + 3 * width:
                needed = [mlp + 3 * width, *whole.shape[1:]]
                raise ValueError(
                    f"'{name}' has shape {list(whole.shape)}, but the configuration needs {needed}"
                )
            part = rest.removeprefix("in_proj.")
            first, qkv = torch.split(whole, [mlp, 3 * width])
            found |= {f"{block}mlp.fc1.{part}": first, f"{block}attn.qkv.{part}": qkv}
        else:
            found |= {f"{block}{ours}": value for ours in SAME.get(rest, (rest,))}
    return found


def _split(name: str) -> tuple[str | None, str]:
    """("blocks.3.", the rest of the name); (None, name) for what is not in a block."""
    if not name.startswith("blocks."):
        return None, name
    blocks, index, rest = name.split(".", 2)
    return f"{blocks}.{index}.", rest
