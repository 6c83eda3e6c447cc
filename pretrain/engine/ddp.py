"""DDP: every process holds the whole state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .base import Engine


class DDP(Engine):
    def place(self, model: nn.Module) -> nn.Module:
        model.to_empty(device=self.world.device)
        if self.world.size == 1:
            return model
        ids = [self.world.device] if self.world.device.type == "cuda" else None
        # Rank 0's values need no broadcast: every process fills in the same ones, by name.
        return DistributedDataParallel(model, device_ids=ids, init_sync=False)

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        if last or self.world.size == 1:
            return nullcontext()
        return self.forward_module.no_sync()

    def autocast(self) -> AbstractContextManager[None]:
        if self.config.engine.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    @property
    def replica(self) -> tuple[int, int]:
        return self.world.rank, self.world.size
