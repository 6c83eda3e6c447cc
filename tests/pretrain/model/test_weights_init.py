"""Initial weights depend on the seed and the name, and on nothing else."""

import math

import pytest
import torch
from torch import nn

from pretrain.model import Classifier, VisionTransformer
from pretrain.model.init import initial_value, initialize


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_order_of_drawing_and_other_parameters_do_not_matter(small):
    model = small(max_tiles=4)
    expected = state(model)
    torch.manual_seed(123)
    for name, parameter in reversed(list(model.named_parameters())):
        value = initial_value(model, name, parameter.shape, seed=0)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])
    deeper = small(max_tiles=4, num_layers=3).state_dict()
    assert all(torch.equal(deeper[name], value) for name, value in expected.items())


def test_seeds_and_names_differ(small):
    model = small()
    name, other = (f"encoder.layers.{i}.mlp.fc1.weight" for i in (0, 1))
    shape = model.get_parameter(name).shape
    values = [initial_value(model, n, shape, s) for n, s in [(name, 0), (other, 0), (name, 1)]]
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    "fields",
    [{"max_tiles": 4}, {"pool": "mean", "head": "linear", "position": "sincos2d", "max_tiles": 2}],
)
def test_no_parameter_is_forgotten(small, small_config, fields):
    expected = small(**fields)
    with torch.device("meta"):
        tiles = fields["max_tiles"]
        config = small_config(**{k: v for k, v in fields.items() if k != "max_tiles"})
        model = Classifier(
            config, tile_size=32, max_tiles=tiles, num_classes=5, mean=(0.5,) * 3, std=(0.5,) * 3
        )
    assert list(model.buffers()) == []
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize(model, seed=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.get_parameter(name)), name


def test_wrapped_names_give_the_same_values(small):
    model = small()
    name = "encoder.layers.1.attn.qkv.weight"
    wrapped = "encoder.layers.1._checkpoint_wrapped_module.attn.qkv.weight"
    shape = model.get_parameter(name).shape
    values = [initial_value(model, n, shape, 0) for n in (name, wrapped, f"_orig_mod.{name}")]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_a_parameter_without_a_rule_is_an_error(small):
    model = small()
    model.encoder.extra = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"encoder\.extra\.weight"):
        initialize(model, seed=0)


def test_values_are_those_of_the_paper(small):
    values = small(max_tiles=4, embed_dim=128, mlp_dim=256, head_bias=-6.9).state_dict()
    block = "encoder.layers.0."
    for part in values[block + "attn.qkv.weight"].chunk(3):
        bound = math.sqrt(6 / (128 + 128))
        assert 0.99 * bound < part.abs().max() <= bound
    bound = math.sqrt(6 / (128 + 256))
    assert 0.99 * bound < values[block + "mlp.fc2.weight"].abs().max() <= bound
    assert values[block + "mlp.fc1.bias"].std() == pytest.approx(1e-6, rel=0.2)
    assert (values[block + "norm1.weight"] == 1).all()
    assert values["encoder.patch_embed.weight"].std() == pytest.approx(192**-0.5, rel=0.05)
    assert values["encoder.token_pos_embedding.local"].std() == pytest.approx(0.02, rel=0.1)
    for table in ("token_pos_embedding.global_", "pre_tile_pos_embed.embedding"):
        assert values["encoder." + table].std() == pytest.approx(128**-0.5, rel=0.1)
    zero = [
        "cls_token_embedding.weight",
        "patch_embed.bias",
        "pre_tile_pos_embed.gate",
        "token_pos_embedding.gate",
    ]
    assert not any(values["encoder." + name].any() for name in zero)
    assert not values["head.fc2.weight"].any()
    assert (values["head.fc2.bias"] == torch.tensor(-6.9)).all()


def test_a_model_built_by_hand_begins_with_finite_values(small):
    blocks = small().blocks
    embedding = small().encoder.token_pos_embedding
    model = VisionTransformer(8, 32, 2, 32, blocks[0], embedding)
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters())
    assert model.cls_token_embedding.weight.any()
