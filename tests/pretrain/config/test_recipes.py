"""Every recipe that comes with the project can be built, and has the published size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import ROOT

from pretrain.config.loading import load
from pretrain.config.schema import Config
from pretrain.model.build import build_model

# Millions of parameters with a linear head for 1000 classes and a class token: ViT paper table 1 (B, L), DeiT
# (S), timm's vit_base_r50_s16_384 for the hybrid, whose positions are those of 384 px.
PUBLISHED = {
    "configs/pretrain/vit_s16_in1k.yaml": (224, 22.05),
    "configs/pretrain/vit_b16_in21k.yaml": (224, 86.57),
    "configs/pretrain/vit_l16_in21k.yaml": (224, 304.33),
    "configs/pretrain/hybrid_r50_vit_b16.yaml": (384, 98.95),
}
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name != "cluster"
)
PRETRAINING = [recipe for recipe in RECIPES if "finetune" not in recipe]


def build(config: Config, num_classes: int) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(config, num_classes)


@pytest.mark.parametrize("recipe", PRETRAINING)
def test_a_pretraining_recipe_builds(recipe: str) -> None:
    config = load(str(ROOT / recipe), [])
    model = build(config, 1000)
    assert config.model.head == "mlp"
    assert model(torch.empty(2, 3, config.data.tile_size, config.data.tile_size, device="meta")).shape == (
        2,
        1000,
    )


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_its_size_is_the_published_one(recipe: str) -> None:
    size, millions = PUBLISHED[recipe]
    settings = [
        f"data.tile_size={size}",
        "model.head=linear",
        "model.pool=cls",
        "model.position=learned",
    ]
    model = build(load(str(ROOT / recipe), settings), 1000)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_labmls_cifar10_model_has_its_sizes() -> None:
    model = build(load(str(ROOT / "configs/cifar10.yaml"), []), 10)
    assert model.encoder.patch_embed.weight.shape == (512, 3, 4, 4)
    assert model.head.fc1.weight.shape == (2048, 512)
    assert len(model.blocks) == 6


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_head_comment_says_command_and_expectation(recipe: str) -> None:
    lines = (ROOT / recipe).read_text().splitlines()
    head = "\n".join(line for line in lines[: lines.index("")] if line.startswith("#"))
    assert "#   torchrun --n" in head
    assert recipe in head
    assert "Expected: " in head


def test_every_recipe_of_the_design_is_there() -> None:
    for name in ("quickstart", "quickstart_finetune", "cifar10", "finetune/in1k_384"):
        assert Path(ROOT / f"configs/{name}.yaml").is_file()
