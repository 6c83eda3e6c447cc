"""What is done to each block before the model is spread over the processes: activation checkpointing, then
compilation, each block by itself. Both leave the parameters and their names as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from data_tools.errors import UsageError

from ..config.schema import EngineConfig
from ..model.packing import Packing

Forward = Callable[[Tensor, Packing], Tensor]

BACKEND: str | Callable[..., Any] = "inductor"

# What `selective` keeps in memory: the outputs of matrix products and of attention, whichever kernel computes
# it. The rest of a block is cheap to compute again.
KEPT = (
    "aten.mm",
    "aten.addmm",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
    "vit_pretrain.grouped_attention",
)


def compiling(config: EngineConfig) -> str:
    """What engine.compile does at the first step, in a sentence; empty where it is off.

    Raises UsageError where the compiler is missing that it needs on a CPU.
    """
    if not config.compile:
        return ""
    where = "for the GPU"
    if not torch.cuda.is_available():
        compiler = os.environ.get("CXX", "g++")
        if not shutil.which(compiler):
            raise UsageError(
                f"engine.compile=true: on a CPU it needs the C++ compiler {compiler}, which is not there: "
                f"install it, name another one in the variable CXX, or set engine.compile=false"
            )
        where = f"for the CPU, with {compiler}"
    return f"engine.compile=true: the first step compiles the blocks {where}, which takes a while"


def prepare_blocks(blocks: nn.ModuleList, config: EngineConfig) -> None:
    """Wrap the forward of each block, not the block, so that its parameters keep their names."""
    for block in blocks:
        forward = block.forward
        if config.activation_checkpointing != "none":
            forward = _checkpointed(forward, selective=config.activation_checkpointing == "selective")
        block.forward = _compiled(forward) if config.compile else forward


def _checkpointed(forward: Forward, selective: bool) -> Forward:
    extra: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    return partial(checkpoint, forward, use_reentrant=False, **(extra if selective else {}))


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = str(operator).rpartition(".")[0] in KEPT  # without the name of the overload
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _compiled(forward: Forward) -> Forward:
    """`forward`, compiled to one graph for all blocks and all numbers of tiles."""
    compiled = torch.compile(forward, backend=BACKEND, fullgraph=True)

    def call(x: Tensor, packing: Packing) -> Tensor:
        if packing.watch is not None:  # not worth compiling: models are inspected rarely
            return forward(x, packing)
        if not packing.single:
            turns = (packing.rotation.cos, packing.rotation.sin) if packing.rotation is not None else ()
            for tensor in (x, packing.image, packing.host_offsets, *turns):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        # Fields that no block reads get fixed values: torch 2.11 compiles anew where they differ.
        same: dict[str, Any] = {"order": None, "inverse": None, "image_inverse": None, "groups": ()}
        same |= dict.fromkeys(("row", "column", "rows", "columns"), packing.image)
        return compiled(x, replace(packing, uniform=False, **same))

    return call
