"""DDP (arXiv 2006.15704): every process holds the whole state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..model.build import Model
from .base import Engine


class DDP(Engine):
    """The whole model on every process; a single process needs no wrapper around it."""

    def place(self, model: Model) -> nn.Module:
        model.to_empty(device=self.world.device)
        if self.world.size == 1:
            return model
        ids = [self.world.device] if self.world.device.type == "cuda" else None
        # No broadcast from rank 0: every process computes the same initial values from the names.
        return DistributedDataParallel(model, device_ids=ids, init_sync=False)

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.forward_module, DistributedDataParallel):
            return nullcontext()
        return self.forward_module.no_sync()

    def autocast(self) -> AbstractContextManager[None]:
        if self.config.engine.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    @property
    def replica(self) -> tuple[int, int]:
        return self.world.rank, self.world.size
