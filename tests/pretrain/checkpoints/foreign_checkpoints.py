"""Run by torchrun: the first weights of CONFIG's model, saved by DeepSpeed itself and by torch's DCP.

foreign_checkpoints.py CONFIG FOLDER: writes FOLDER/zero2, FOLDER/zero3 and FOLDER/dcp.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from pretrain.config.loading import load
from pretrain.engine.kinds import ENGINES
from pretrain.model.build import build_model
from pretrain.model.init import random_values
from pretrain.run import processes

recipe, target = sys.argv[1], Path(sys.argv[2])
world = processes.start(60)
for name, settings in {
    "zero2": ["engine.kind=deepspeed", "engine.zero_stage=2"],
    "zero3": ["engine.kind=deepspeed", "engine.zero_stage=3"],
    "dcp": ["engine.kind=fsdp"],
}.items():
    config = load(recipe, settings)
    with torch.device("meta"):
        model = build_model(config, 3)
    engine = ENGINES[config.engine.kind](config, world, model, random_values(model, seed=7))
    if name == "dcp":
        weights, optimizer = get_state_dict(engine.model, engine.optimizer)
        dcp.save({"net": weights, "optimizer": optimizer}, checkpoint_id=target / name)
    else:
        engine.forward_module.save_checkpoint(str(target / name), tag="step5")
processes.leave(world, 0)
