"""FSDP2: every parameter, its gradient and its moments are split by rows over the processes.

With engine.shard_size below the number of processes, the state is split over the processes of a group of
that size, and every group holds a copy (HSDP).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

from data_tools.errors import UsageError
from data_tools.tile_batch import TileBatch

from ..model.build import Model
from .base import Engine


class FSDP(Engine):
    """Each block is one FSDP unit; what lies outside the blocks is another."""

    def place(self, model: Model) -> nn.Module:
        size = self.config.engine.shard_size or self.world.size
        if self.world.size % size:
            raise UsageError(
                f"engine.shard_size={size} does not divide the {self.world.size} processes",
                shared=True,
            )
        device = self.world.device.type
        if size == self.world.size:
            mesh = init_device_mesh(device, (size,), mesh_dim_names=("shard",))
        else:
            shape = (self.world.size // size, size)
            mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
        policy = fsdp.MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.config.engine.precision == "bf16" else None,
            reduce_dtype=torch.float32,
        )
        offloaded = self.config.engine.offload == "all"
        offload = fsdp.CPUOffloadPolicy(pin_memory=device == "cuda") if offloaded else fsdp.OffloadPolicy()
        reshard = self.config.engine.reshard_after_forward
        for block in model.blocks:
            fsdp.fully_shard(
                block, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=reshard
            )
        fsdp.fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload)
        model.to_empty(device="cpu" if offloaded else self.world.device)
        return model

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.model, fsdp.FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def logits(self, batch: TileBatch) -> Tensor:
        logits = super().logits(batch)
        # A forward pass without a backward pass leaves parameters gathered. Without resharding, the next
        # pass would use these copies, not what the optimizer has changed since.
        for module in self.model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()
        return logits
