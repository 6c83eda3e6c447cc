"""FSDP2: every parameter, its gradient and its moments split by rows over the processes.

With engine.shard_size below the number of processes, the state is split within groups of that many and
repeated over the groups (HSDP).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from data_tools.errors import UsageError
from data_tools.tile_batch import TileBatch

from .base import Engine


class FSDP(Engine):
    def place(self, model: nn.Module) -> nn.Module:
        size = self.config.engine.shard_size or self.world.size
        if self.world.size % size:
            raise UsageError(
                f"engine.shard_size={size} does not divide the {self.world.size} processes",
                shared=True,
            )
        kind = self.world.device.type
        if size == self.world.size:
            mesh = init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
        else:
            shape = (self.world.size // size, size)
            mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.config.engine.precision == "bf16" else None,
            reduce_dtype=torch.float32,
        )
        settings = {"mesh": mesh, "mp_policy": policy}
        if self.config.engine.offload == "all":
            settings["offload_policy"] = CPUOffloadPolicy(pin_memory=kind == "cuda")
        for block in model.blocks:
            fully_shard(block, reshard_after_forward=self.config.engine.reshard_after_forward, **settings)
        fully_shard(model, **settings)
        model.to_empty(device="cpu" if self.config.engine.offload == "all" else self.world.device)
        return model

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def logits(self, batch: TileBatch) -> Tensor:
        logits = super().logits(batch)
        # What stays whole after a forward alone would not have the optimizer's values in the next.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return logits
