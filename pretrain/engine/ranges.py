"""State as flat ranges: the one form in which every engine gives and takes it.

The shard of a parameter that a process holds is, under every engine, a contiguous range of the row-major
flattened parameter. A checkpoint is such ranges, so that a load at another size or under another engine
only copies overlaps: no collective, no whole parameter on any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class LocalRange:
    """Elements [offset, offset + len(data)) of the flattened tensor `key`.

    shape: of the whole tensor; data: 1-D view of the live state; replica of replicas: which of the processes
    that hold the same range this is, so that together they save it once.
    """

    key: str
    shape: tuple[int, ...]
    offset: int
    data: Tensor
    replica: int
    replicas: int

    @property
    def own_part(self) -> tuple[int, Tensor]:
        """(offset, data) of the part of the range that this process saves."""
        count = self.data.numel()
        begin = count * self.replica // self.replicas
        end = count * (self.replica + 1) // self.replicas
        return self.offset + begin, self.data[begin:end]


def local_range(key: str, tensor: Tensor, replica: int, replicas: int) -> LocalRange:
    """The range of `tensor` that this process holds.

    A DTensor is split by rows (Shard(0)) over the last dimension of its mesh and repeated over the ones
    before it; any other tensor is whole, and repeated as the caller says.
    """
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return LocalRange(key, shape, 0, tensor.detach().view(-1), replica, replicas)
    *repeated, split = tensor.placements
    if split != Shard(0) or not all(placement.is_replicate() for placement in repeated):
        raise NotImplementedError(f"{key} is placed as {tensor.placements}, not split by rows")
    mesh = tensor.device_mesh
    rows = -(-shape[0] // mesh.size(-1))
    offset = min(mesh.get_local_rank(mesh.ndim - 1) * rows, shape[0]) * prod(shape[1:])
    if repeated:
        replica, replicas = mesh.get_local_rank(0), mesh.size(0)
    else:
        replica, replicas = 0, 1
    return LocalRange(key, shape, offset, tensor.detach().to_local().view(-1), replica, replicas)
