"""SwiGLU and RMSNorm, beside timm's; their share of parameters, operations, decay and exports."""

from __future__ import annotations

import pytest
import torch

from finetune.formats import to_peer
from pretrain.config.schema import ModelConfig, OptimConfig
from pretrain.engine.optim import parameter_groups
from pretrain.model.flops import forward_flops
from pretrain.model.norm import RMSNorm
from pretrain.model.swiglu import SwiGLU
from pretrain.model.variants import resolve


def noisy(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return module


def test_a_swiglu_is_timms() -> None:
    layers = pytest.importorskip("timm.layers")
    ours, x = noisy(SwiGLU(8, 12)), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    theirs = layers.SwiGLU(8, 12)
    gate, value = ours.fc1.weight.chunk(2)
    gate_bias, value_bias = ours.fc1.bias.chunk(2)
    theirs.load_state_dict(
        {"fc1_g.weight": gate, "fc1_g.bias": gate_bias, "fc1_x.weight": value, "fc1_x.bias": value_bias}
        | {f"fc2.{name}": part for name, part in ours.fc2.named_parameters()}
    )
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_root_mean_square_norm_is_timms_also_for_half_precision() -> None:
    layers = pytest.importorskip("timm.layers")
    ours, theirs = noisy(RMSNorm(8, eps=1e-5)), layers.RmsNorm(8, eps=1e-5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)) * 5
    torch.testing.assert_close(ours(x), theirs(x))
    half = x.bfloat16()
    assert ours(half).dtype == torch.float32 and ours.bfloat16()(half).dtype == torch.bfloat16


def test_a_swiglu_has_about_the_numbers_and_operations_of_the_mlp_that_it_replaces() -> None:
    plain, gated = ModelConfig(name="vit_s16"), ModelConfig(name="vit_s16", mlp="swiglu")
    assert resolve(gated).mlp_dim == 1024
    assert resolve(ModelConfig(name="vit_s16", mlp="swiglu", mlp_dim=1536)).mlp_dim == 1536
    operations = [forward_flops(config, tile_size=224, num_classes=10) for config in (plain, gated)]
    assert operations[0] == operations[1]


def test_norms_do_not_decay_and_blocks_have_their_depth(small) -> None:
    model = small(norm="rms", mlp="swiglu", qk_norm=True, pre_norm=True, pool="map", position="rope2d")
    groups = parameter_groups(OptimConfig(layer_decay=0.5, weight_decay=0.1), model)
    of = {name: group for group in groups for name in group.names}
    assert set(of) == {name for name, _ in model.named_parameters()}
    assert not any("norm" in name and name.endswith("bias") for name in of)
    for name, group in of.items():
        matrix = name.endswith(".weight") and "norm" not in name and "ln_" not in name
        assert (group.weight_decay > 0) == matrix, name
        if "layers.0." in name:
            assert group.scale == 0.25, name


@pytest.mark.parametrize("peer", ["hf_vit", "timm", "google"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mlp": "swiglu"}, "SwiGLU"),
        ({"norm": "rms"}, "RMSNorm"),
        ({"position": "rope2d"}, "rotary positions"),
    ],
)
def test_formats_that_have_them_not_say_so(small, peer: str, fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        to_peer(small(head="linear", activation="gelu_tanh", pool="cls", **fields), peer)
