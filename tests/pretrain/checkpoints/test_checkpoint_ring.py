"""One checkpoint, every engine: each reads what the one before wrote, at another size, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import Data, losses, metrics, script, succeed, write_recipe

from pretrain.checkpoints.checkpoint import Checkpoint, complete

RING = {
    "fsdp-4": ("engine.kind=fsdp",),
    "ddp-3": ("engine.kind=ddp",),
    "zero1-3": ("engine.kind=deepspeed", "engine.zero_stage=1"),
    "zero2-2": ("engine.kind=deepspeed", "engine.zero_stage=2"),
    "zero3-3": ("engine.kind=deepspeed", "engine.zero_stage=3"),
    "hsdp-4": ("engine.kind=fsdp", "engine.shard_size=2"),
    "zero3bf16-4": ("engine.kind=deepspeed", "engine.zero_stage=3", "engine.precision=bf16"),
    "zero1bf16-2": ("engine.kind=deepspeed", "engine.zero_stage=1", "engine.precision=bf16"),
    "fsdp-3": ("engine.kind=fsdp",),
}
SETTINGS = ("model.position=sincos2d", "optim.ema=0.9")


@pytest.fixture(scope="module")
def recipe(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("ring"), data)


def test_every_hop_is_bitwise_equal(recipe: Path) -> None:
    """Weights, both moments, average and step; one parameter is frozen, there are two parameter groups."""
    root = recipe.parent
    succeed("pretrain", recipe, f"run.dir={root}", "run.name=start", "train.steps=5", *SETTINGS)
    first = Checkpoint(complete(root / "start/checkpoints")[0])
    assert all(first.has(kind) for kind in ("model", "exp_avg", "exp_avg_sq", "ema"))
    before = root / "start"
    for name, engine in RING.items():
        after = root / name
        settings = (f"run.dir={root}", f"run.name={before.name}", "train.steps=40", *SETTINGS, *engine)
        script(
            "pretrain/checkpoints/resave.py",
            after / "checkpoints",
            recipe,
            *settings,
            processes=int(name.split("-")[1]),
        )
        found = Checkpoint(complete(after / "checkpoints")[0])
        found.verify()
        assert found.tensors == first.tensors, name
        assert found.state["optimizer_steps"] == first.state["optimizer_steps"], name
        for key in first.tensors:
            assert torch.equal(found.whole(key), first.whole(key)), (name, key)
        before = after


def test_training_goes_on_at_every_hop(recipe: Path) -> None:
    """Each engine in turn trains four steps of one run, whose losses are those of a run never stopped."""
    root = recipe.parent
    settings = (f"run.dir={root}", "optim.schedule=constant", *SETTINGS)
    hops = [name for name in RING if "bf16" not in name]
    for number, name in enumerate(hops, 1):
        call = (*settings, "run.name=relay", *RING[name], f"train.steps={4 * number}")
        succeed("pretrain", recipe, *call, processes=int(name.split("-")[1]))
    succeed("pretrain", recipe, *settings, "run.name=alone", f"train.steps={4 * len(hops)}")
    wanted, found = losses(root / "alone"), losses(root / "relay")
    assert list(found) == list(wanted)
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], abs=1e-6), f"step {step}"
    (one,), (*_, other) = (
        [row for row in metrics(root / name) if row.get("weights") == "ema"] for name in ("alone", "relay")
    )
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
