"""Training state as flat ranges, the form in which every engine exchanges it with checkpoints.

Under every engine a process's part of a parameter is a contiguous range of the flattened (row-major)
parameter. A checkpoint consists of such ranges. So a load with another number of processes or another engine
only copies where ranges overlap: it needs no communication, and no process needs a whole parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class LocalRange:
    """Elements [offset, offset + len(data)) of the flattened tensor `key`.

    shape: of the whole tensor; data: a 1-D view, so that writing to it changes the state. replicas: how many
    processes hold this range; replica: which of them this is, from 0. Each of them saves one part of it.
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

    A DTensor must be split by rows (Shard(0)) over the last dimension of its mesh and replicated over the
    others, or NotImplementedError is raised. Any other tensor is whole; `replica` and `replicas` (as in
    LocalRange) hold for such tensors only.
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
    return LocalRange(key, shape, offset, tensor.to_local().detach().view(-1), replica, replicas)
