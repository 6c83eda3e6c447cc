"""DeepSpeed ZeRO: stage 1 splits the optimizer's state over the processes, 2 the gradients as well, 3 the
parameters too. Started by torchrun or srun; DeepSpeed's own launcher is not needed.

DeepSpeed keeps the fp32 state of a group of parameters as one flat tensor, of which each process holds a
contiguous part. Where in it a parameter lies is known to private attributes only; the tests hold them.

In bf16, stages 2 and 3 compute with bf16 copies of the parameters. They add gradients up in fp32, over
processes and micro-batches, but DeepSpeed rounds what a micro-batch gives, once, to bf16. Stage 1 computes
under autocast: there DeepSpeed adds up in fp32 only with another optimizer, whose state lies elsewhere.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_tools.tile_batch import TileBatch

from .base import Engine, Loss
from .optim import STATE, set_learning_rate
from .ranges import LocalRange


class ZeRO(Engine):
    def place(self, model: nn.Module) -> nn.Module:
        self.deepspeed = _import_deepspeed(self.world.device.type)
        if self.config.engine.zero_stage < 3:
            model.to_empty(device=self.world.device)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        if self.config.engine.zero_stage == 3:
            self._split(list(model.parameters()))
        return model

    def _split(self, parameters: list[nn.Parameter]) -> None:
        """One after the other, from the meta device, so that no process ever holds the whole model."""
        dtype = torch.bfloat16 if self._computes_in_copies else torch.float32
        for parameter in parameters:
            whole = torch.full_like(parameter, float("nan"), dtype=dtype, device=self.world.device)
            torch.utils.swap_tensors(parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad))
            if parameter is parameters[0]:
                self.deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=self._settings())
            else:
                parameters[0].convert_to_zero_parameters([parameter])

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
            # One gather for a block: hooks on what lies inside it would break its graph.
            self.deepspeed.utils.set_z3_leaf_modules(self.model, [type(self.model.blocks[0])])
        self.forward_module, self.optimizer, _, _ = self.deepspeed.initialize(
            model=self.model,
            optimizer=self.optimizer,
            dist_init_required=False,
            config=self._settings(),
        )
        # The state must be there before the first step, for a checkpoint to be loaded into it.
        for flat in self._flat_parts():
            state = self._state(flat)
            if self.config.optim.name == "adamw":
                state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            for kind in STATE[self.config.optim.name]:
                state[kind] = torch.zeros_like(flat)
        if self.config.engine.zero_stage < 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

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
                "lower_precision_safe_modules": [],  # whose gradients would travel in bf16
            },
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    def _placement(self) -> dict[str, Any]:
        # A block is gathered and reduced at a time, as under FSDP: DeepSpeed's own bounds are of up to 1e9
        # values, whole models.
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
            self.forward_module.step()  # only counts the micro-batch
        return total

    def backward(self, loss: Tensor) -> None:
        self.forward_module.backward(loss * self.forward_module.gradient_accumulation_steps())

    def clip_and_step(self, learning_rate: float) -> Tensor:
        set_learning_rate(self.optimizer, learning_rate)
        self.forward_module.step()
        return torch.as_tensor(self.forward_module.get_global_grad_norm())

    def training_ranges(self) -> Iterator[LocalRange]:
        for parameter in self.model.parameters():
            name = self.names[id(parameter)]
            shape = self.shapes[name]
            if name in self.frozen:
                offset = min(self.world.rank * self._share(parameter), self._numel(parameter))
                data = self.frozen[name][: self._numel(parameter) - offset]
                yield LocalRange(f"model/{name}", shape, offset, data, 0, 1)
                continue
            for kind in (None, *STATE[self.config.optim.name]):
                offset, data = self._part(parameter, kind)
                yield LocalRange(f"{kind or 'model'}/{name}", shape, offset, data, 0, 1)

    def loaded(self) -> None:
        """Bring the parameters that compute up to date with the fp32 state that was loaded."""
        for parameter in self.model.parameters():
            share = self.frozen.get(self.names[id(parameter)])
            if share is not None and self.config.engine.zero_stage < 3:
                shares = [torch.empty_like(share) for _ in range(self.world.size)]
                dist.all_gather(shares, share)
                parameter.data.copy_(torch.cat(shares)[: parameter.numel()].view(parameter.shape))
            elif share is not None:
                parameter.ds_tensor.data.copy_(share)
        if self.config.engine.zero_stage < 3:
            self.optimizer.update_lp_params()
            return
        for group in range(len(self.optimizer.fp32_partitioned_groups_flat)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
        persistent = self.optimizer.persistent_parameters
        if persistent:  # these stay whole between steps: give up the old values, then gather the new ones
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    def optimizer_steps(self) -> dict[str, int]:
        steps = [int(state["step"]) for state in map(self._state, self._flat_parts()) if "step" in state]
        return {name: steps[0] for name in self.shapes if name not in self.frozen} if steps else {}

    def set_optimizer_steps(self, steps: dict[str, int]) -> None:
        for state in map(self._state, self._flat_parts()):
            if "step" in state:
                state["step"].fill_(max(steps.values()))

    def _numel(self, parameter: nn.Parameter) -> int:
        return prod(self.shapes[self.names[id(parameter)]])

    def _share(self, parameter: nn.Parameter) -> int:
        """How many values of a parameter that is not trained a process keeps."""
        if self.config.engine.zero_stage < 3:
            return -(-self._numel(parameter) // self.world.size)
        return parameter.ds_tensor.numel()

    def _flat_parts(self) -> list[Tensor]:
        if self.config.engine.zero_stage < 3:
            return self.optimizer.single_partition_of_fp32_groups
        return self.optimizer.fp32_partitioned_groups_flat

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        return self.optimizer.optimizer.state[flat]

    def _part(self, parameter: nn.Parameter, kind: str | None) -> tuple[int, Tensor]:
        """(offset, data) of the part of a parameter, or of a kind of its state, that this process holds."""
        if self.config.engine.zero_stage < 3:
            mapping = parameter._hp_mapping
            if mapping is None:
                return 0, torch.empty(0, device=self.world.device)
            return mapping.lp_fragment_address.start, mapping.get_hp_fragment(kind).detach()
        part, _ = self.optimizer._get_fp32_opt_state_partition(parameter, False, kind)
        offset = min(self.world.rank * part.numel(), parameter.ds_numel)
        return offset, part.detach()[: max(0, parameter.ds_numel - offset)]


def _import_deepspeed(device: str):
    """DeepSpeed, joined to the process group that is there already, and quiet."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", "0")  # a process without torchrun
    if device == "cpu":
        # Otherwise DeepSpeed runs numactl for every bucket of gradients, and ends where PATH has a folder
        # that this user may not enter.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # DeepSpeed calls collectives by the names that torch 2.13 is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device == "cpu":
        # Otherwise the first start compiles a shared-memory collective, which takes minutes and a compiler.
        for name in deepspeed.ops.__compatible_ops__:
            if "shm" in name:
                deepspeed.ops.__compatible_ops__[name] = False
    deepspeed.init_distributed(dist_backend="gloo" if device == "cpu" else "nccl", dist_init_required=False)
    return deepspeed
