"""DeepSpeed ZeRO (arXiv 1910.02054): stage 1 splits the optimizer's state over the processes, stage 2 the
gradients too, stage 3 also the parameters. Jobs start by torchrun or srun, without DeepSpeed's own launcher.

DeepSpeed keeps the fp32 state of a group of parameters as one flat tensor, of which each process holds a
contiguous part. Only private attributes tell where in it a parameter lies. The Protocols below list all that
is used of DeepSpeed's objects, and the tests fail if a new version of DeepSpeed changes it.

In bf16, stages 2 and 3 compute with bf16 copies of the parameters. Gradients are summed in fp32 over
processes and micro-batches, but DeepSpeed first rounds the gradient of each micro-batch to bf16. Stage 1
computes under autocast instead: with bf16 copies, DeepSpeed sums in fp32 only with another of its
optimizers, whose state lies elsewhere.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from types import ModuleType
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_tools.tile_batch import TileBatch

from ..model.build import Model
from .base import Engine, Loss
from .optim import MOMENTS, create_state, set_learning_rate
from .ranges import LocalRange


class _Parameter(Protocol):
    """What DeepSpeed adds to a parameter."""

    _hp_mapping: Any  # stages 1 and 2: its place in the flat state; None if another process holds it
    ds_tensor: Tensor  # stage 3: the part that this process holds
    ds_numel: int  # stage 3: of the whole parameter

    def convert_to_zero_parameters(self, parameters: list[nn.Parameter]) -> None: ...
    def partition(self, parameters: list[_Parameter]) -> None: ...
    def all_gather(self, parameters: list[_Parameter]) -> None: ...


class _Optimizer(Protocol):
    """DeepSpeed's wrapper of the optimizer; stage 3 has other attributes than stages 1 and 2."""

    single_partition_of_fp32_groups: list[Tensor]
    fp32_partitioned_groups_flat: list[Tensor]
    persistent_parameters: list[_Parameter]

    def _lazy_init_hp_params_optimizer_state(self) -> None: ...
    def update_lp_params(self) -> None: ...
    def _reassign_or_swap_out_partitioned_parameters(self, group: int) -> None: ...
    def _get_fp32_opt_state_partition(
        self, parameter: nn.Parameter, release_swap_buffers: bool, moment: str | None
    ) -> tuple[Tensor, int]: ...


class _Runner(Protocol):
    """DeepSpeed's wrapper of the model, which runs the steps."""

    def backward(self, loss: Tensor) -> Tensor: ...
    def step(self) -> None: ...
    def gradient_accumulation_steps(self) -> int: ...
    def get_global_grad_norm(self) -> float: ...


class ZeRO(Engine):
    """DeepSpeed runs the steps; what it splits, and how, is said above."""

    runner: _Runner
    sharded: _Optimizer

    def place(self, model: Model) -> nn.Module:
        self.deepspeed = _import_deepspeed(self.world.device.type)
        if self.config.engine.zero_stage < 3:
            model.to_empty(device=self.world.device)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if self.config.engine.zero_stage == 3:
            self._split(list(model.parameters()))
        return model

    def _split(self, parameters: list[nn.Parameter]) -> None:
        """Create the parameters one after the other, so that no process ever holds the whole model."""
        dtype = torch.bfloat16 if self._computes_in_copies else torch.float32
        for parameter in parameters:
            whole = torch.full_like(parameter, float("nan"), dtype=dtype, device=self.world.device)
            torch.utils.swap_tensors(parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad))
            if parameter is parameters[0]:
                self.deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=self._settings())
            else:
                _extended(parameters[0]).convert_to_zero_parameters([parameter])

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def prepare_optimizer(self) -> None:
        self.frozen = {
            self.names[id(parameter)]: torch.full(
                (self._share(parameter),), float("nan"), device=self.world.device
            )
            for parameter in self.model.parameters()
            if not parameter.requires_grad
        }
        if self.config.engine.zero_stage == 3 and self.config.engine.compile:
            # Gather a block as a whole: hooks on the modules inside it would split its compiled graph.
            self.deepspeed.utils.set_z3_leaf_modules(self.model, [type(self.model.blocks[0])])
        wrapped, self.sharded, _, _ = self.deepspeed.initialize(
            model=self.model,
            optimizer=self.optimizer,
            dist_init_required=False,
            config=self._settings(),
        )
        self.forward_module = self.runner = wrapped
        create_state(self.config.optim, self.optimizer, self._flat_parts())
        if self.config.engine.zero_stage < 3:
            self.sharded._lazy_init_hp_params_optimizer_state()

    @property
    def _computes_in_copies(self) -> bool:
        return self.config.engine.precision == "bf16" and self.config.engine.zero_stage > 1

    def _settings(self) -> dict[str, Any]:
        train, precision = self.config.train, self.config.engine.precision
        share = train.batch_size // self.world.size
        micro = train.micro_batch_size or share
        return {
            "train_batch_size": train.batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": share // micro,
            "gradient_clipping": self.config.optim.clip_norm,
            "zero_optimization": self._placement(),
            "bf16": {"enabled": self._computes_in_copies},
            "torch_autocast": {
                "enabled": precision == "bf16" and not self._computes_in_copies,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # the gradients of these would be sent in bf16
            },
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    def _placement(self) -> dict[str, Any]:
        # Parameters are gathered and gradients reduced one block at a time, as under FSDP. DeepSpeed's own
        # bounds, up to 1e9 values, are as large as a whole model.
        block = sum(self._numel(parameter) for parameter in self.model.blocks[0].parameters())
        placement: dict[str, Any] = {
            "stage": self.config.engine.zero_stage,
            "reduce_bucket_size": block,
            "allgather_bucket_size": block,
            "stage3_prefetch_bucket_size": block,
            "stage3_max_live_parameters": 2 * block,
        }
        host = {"device": "cpu", "pin_memory": self.world.device.type == "cuda"}
        if self.config.engine.offload != "none":
            placement["offload_optimizer"] = host
        if self.config.engine.offload == "all":
            placement["offload_param"] = host
        return placement

    def train_micro_batch(self, batch: TileBatch, loss: Loss, step: int, micro: int, last: bool) -> Tensor:
        total = super().train_micro_batch(batch, loss, step, micro, last)
        if not last:
            self.runner.step()  # only counts the micro-batch
        return total

    def backward(self, loss: Tensor) -> None:
        self.runner.backward(loss * self.runner.gradient_accumulation_steps())  # by which DeepSpeed divides

    def clip_and_step(self, learning_rate: float) -> Tensor:
        set_learning_rate(self.optimizer, learning_rate)
        self.runner.step()
        return torch.as_tensor(self.runner.get_global_grad_norm())

    def training_ranges(self) -> Iterator[LocalRange]:
        for parameter in self.model.parameters():
            name = self.names[id(parameter)]
            shape = self.shapes[name]
            if name in self.frozen:
                offset = min(self.world.rank * self._share(parameter), self._numel(parameter))
                data = self.frozen[name][: self._numel(parameter) - offset]
                yield LocalRange(f"model/{name}", shape, offset, data, 0, 1)
                continue
            for moment in (None, *MOMENTS[self.config.optim.name]):
                offset, data = self._part(parameter, moment)
                yield LocalRange(f"{moment or 'model'}/{name}", shape, offset, data, 0, 1)

    def loaded(self) -> None:
        """Copy the loaded fp32 state into the parameters that the model computes with."""
        for parameter in self.model.parameters():
            share = self.frozen.get(self.names[id(parameter)])
            if share is not None and self.config.engine.zero_stage < 3:
                shares = [torch.empty_like(share) for _ in range(self.world.size)]
                dist.all_gather(shares, share)
                parameter.data.copy_(torch.cat(shares)[: parameter.numel()].view(parameter.shape))
            elif share is not None:
                _extended(parameter).ds_tensor.data.copy_(share)
        if self.config.engine.zero_stage < 3:
            self.sharded.update_lp_params()
            return
        for group in range(len(self.sharded.fp32_partitioned_groups_flat)):
            self.sharded._reassign_or_swap_out_partitioned_parameters(group)
        persistent = self.sharded.persistent_parameters
        if persistent:  # small ones stay whole between steps: drop the old values, then gather the new ones
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    def optimizer_steps(self) -> dict[str, int]:
        states = [self.optimizer.state[flat] for flat in self._flat_parts()]
        steps = [int(state["step"]) for state in states if "step" in state]
        return {name: steps[0] for name in self.shapes if name not in self.frozen} if steps else {}

    def set_optimizer_steps(self, steps: dict[str, int]) -> None:
        for flat in self._flat_parts():
            if "step" in self.optimizer.state[flat]:
                self.optimizer.state[flat]["step"].fill_(max(steps.values()))

    def _numel(self, parameter: nn.Parameter) -> int:
        return prod(self.shapes[self.names[id(parameter)]])

    def _share(self, parameter: nn.Parameter) -> int:
        """How many values of a frozen parameter each process keeps."""
        if self.config.engine.zero_stage < 3:
            return -(-self._numel(parameter) // self.world.size)
        return _extended(parameter).ds_tensor.numel()

    def _flat_parts(self) -> list[Tensor]:
        """This process's part of each flat fp32 tensor: what the optimizer steps."""
        if self.config.engine.zero_stage < 3:
            return self.sharded.single_partition_of_fp32_groups
        return self.sharded.fp32_partitioned_groups_flat

    def _part(self, parameter: nn.Parameter, moment: str | None) -> tuple[int, Tensor]:
        """(offset, data) of the part that this process holds of a parameter, or of one of its moments."""
        if self.config.engine.zero_stage < 3:
            mapping = _extended(parameter)._hp_mapping
            if mapping is None:
                return 0, torch.empty(0, device=self.world.device)
            return mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment).detach()
        part, _ = self.sharded._get_fp32_opt_state_partition(parameter, False, moment)
        whole = _extended(parameter).ds_numel
        offset = min(self.world.rank * part.numel(), whole)
        return offset, part.detach()[: max(0, whole - offset)]


def _extended(parameter: nn.Parameter) -> _Parameter:
    """The same parameter with the type that it has once DeepSpeed knows it."""
    return cast("_Parameter", parameter)


def _import_deepspeed(device: str) -> ModuleType:
    """DeepSpeed, using the process group that exists already, and logging warnings only."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", "0")  # a process without torchrun
    if device == "cpu":
        # Otherwise DeepSpeed runs numactl for every bucket of gradients, and ends where PATH has a folder
        # that this user may not enter.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # DeepSpeed calls collectives by names that torch 2.13 reports as deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device == "cpu":
        # Otherwise the first start compiles a shared-memory collective, which takes minutes.
        for name in deepspeed.ops.__compatible_ops__:
            if "shm" in name:
                deepspeed.ops.__compatible_ops__[name] = False
    deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl", dist_init_required=False)
    return deepspeed
