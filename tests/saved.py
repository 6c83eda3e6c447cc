"""Small checkpoints, as a Saver writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.engine.ranges import LocalRange
from pretrain.run.processes import ALONE

VALUES = {"model/a": torch.randn(6, 5), "model/gate": torch.randn(1), "exp_avg/a": torch.randn(6, 5)}


def ranges(values: dict[str, torch.Tensor], replica: int = 0, replicas: int = 1) -> list[LocalRange]:
    return [
        LocalRange(key, tuple(value.shape), 0, value.view(-1), replica, replicas)
        for key, value in values.items()
    ]


def save(root: Path, step: int, keep: int = 0, background: bool = False) -> Path:
    saver = Saver(root, ALONE, background=background, retention=Retention(keep))
    saver.save(step, ranges(VALUES), {"step": step})
    saver.finish()
    return root / f"step-{step:08d}"
