"""Schedules, parameter groups, and the split of a batch."""

from __future__ import annotations

import pytest

from data_tools.errors import UsageError
from pretrain.config.batch_split import split_batch
from pretrain.config.schema import ModelConfig, OptimConfig, TrainConfig
from pretrain.engine.optim import freeze, parameter_groups, schedule
from pretrain.model.classifier import Classifier


def rates(name: str, steps: int = 100, warmup: int = 10) -> list[float]:
    config = OptimConfig(lr=1.0, schedule=name, warmup_steps=warmup)
    return [schedule(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "rsqrt"])
def test_warm_up_rises_linearly_to_the_rate(name: str) -> None:
    first = rates(name)[:11]
    assert first == pytest.approx([(step + 1) / 11 for step in range(11)])


def test_linear_and_cosine_fall_to_zero() -> None:
    linear, cosine = rates("linear"), rates("cosine")
    assert linear[55] == pytest.approx(0.5)
    assert cosine[55] == pytest.approx(0.5)
    assert cosine[20] > linear[20] and cosine[90] < linear[90]
    assert 0 < cosine[99] < linear[99] < 0.02


def test_constant_stays_and_rsqrt_halves_when_the_step_is_four_times_the_warm_up() -> None:
    assert rates("constant")[99] == 1.0
    assert rates("rsqrt")[40] == pytest.approx(0.5)


def test_a_run_that_is_made_longer_goes_on_above_zero() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine")
    assert schedule(config, 100, 100) == 0.0
    assert schedule(config, 100, 200) == pytest.approx(0.5)


def model(**fields: object) -> Classifier:
    config = ModelConfig(
        name="vit_ti16", patch_size=8, embed_dim=16, num_layers=3, num_heads=2, mlp_dim=32, **fields
    )
    return Classifier(config, tile_size=16, max_tiles=4, num_classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["encoder.layer"], r"no 'encoder.layer'; did you mean encoder.layers\?"),
        (["encoder", "head"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen(names: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        freeze(model(), names)


def test_a_linear_probe_trains_the_head_alone() -> None:
    probe = model(head="linear")
    freeze(probe, ["encoder"])
    assert [name for name, p in probe.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_only_kernels_decay() -> None:
    bare = model()
    groups = parameter_groups(OptimConfig(weight_decay=0.1), bare)
    decaying = {name for group in groups if group.weight_decay for name in group.names}
    assert all(name.endswith(".weight") for name in decaying)
    assert not any("norm" in name or "pos" in name or "cls" in name for name in decaying)
    assert {
        "encoder.patch_embed.weight",
        "encoder.layers.0.attn.qkv.weight",
        "head.fc1.weight",
    } <= decaying
    assert len(decaying) == 1 + 3 * 4 + 2


def test_layer_decay_falls_from_head_to_patches() -> None:
    bare = model()
    groups = parameter_groups(OptimConfig(layer_decay=0.5), bare)
    scale = {name: group.scale for group in groups for name in group.names}
    assert scale["head.fc2.weight"] == scale["encoder.ln_post.weight"] == 1.0
    assert scale["encoder.layers.2.mlp.fc1.weight"] == 0.5
    assert scale["encoder.layers.0.norm1.bias"] == 0.125
    assert scale["encoder.patch_embed.weight"] == scale["encoder.token_pos_embedding.local"] == 0.0625


def test_a_fixed_table_is_not_trained() -> None:
    bare = model(position="sincos2d")
    trained = {name for group in parameter_groups(OptimConfig(), bare) for name in group.names}
    assert "encoder.token_pos_embedding.local" not in trained and "encoder.ln_post.weight" in trained


def test_the_split_is_said_as_an_equation() -> None:
    split = split_batch(TrainConfig(batch_size=4096, micro_batch_size=16), 128)
    assert str(split) == "4096 images = 128 ranks × 16 × 2 accumulation"


def test_without_a_micro_batch_size_a_process_takes_its_share_at_once() -> None:
    assert split_batch(TrainConfig(batch_size=64), 4).accumulation == 1


@pytest.mark.parametrize(("batch", "ranks", "says"), [(10, 4, "8 or 12"), (3, 4, "nearest: 4")])
def test_nearest_batch_sizes(batch: int, ranks: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        split_batch(TrainConfig(batch_size=batch), ranks)
