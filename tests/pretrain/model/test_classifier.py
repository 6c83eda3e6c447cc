"""The classifier from pixels to logits."""

import copy

import pytest
import torch

from data_tools.errors import UsageError
from pretrain.config import ModelConfig
from pretrain.model import Classifier

GRIDS = ((1, 2), (1, 1), (2, 2), (3, 1), (1, 1))
PLAIN = {"tile_size": 224, "max_tiles": 1, "num_classes": 1000}
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit_ti16", 5.717),
        ("vit_s16", 22.051),
        ("vit_b16", 86.568),
        ("vit_l16", 304.327),
        ("vit_so400m14", 413.598),
        ("vit_h14", 632.046),
        ("vit_g14", 1012.611),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = Classifier(ModelConfig(name=name, head="linear"), **PLAIN, **PIXELS)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_first_logits_are_the_head_bias(small, tile_batch, head, pool):
    model = small(head=head, pool=pool, head_bias=-10.0, max_tiles=4)
    logits = model(tile_batch(*GRIDS))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.full((5, 5), -10.0))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_an_image_does_not_depend_on_its_batch_mates(small, tile_batch, pool):
    model = small(max_tiles=4, noise=0.1, pool=pool)
    together = model(tile_batch(*GRIDS))
    assert together.std(0).min() > 1e-3
    for index, grid in enumerate(GRIDS):
        alone = model(tile_batch(grid))
        torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=1e-5)


def test_bytes_are_normalised_and_floats_are_not(small, tile_batch):
    model = small(noise=0.1)
    batch = tile_batch((1, 1), (1, 1))
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.mean, model.std))
    logits = model(batch)
    torch.testing.assert_close(model(batch.tiles), logits)
    torch.testing.assert_close(model((batch.tiles / 255 - mean) / std), logits)


def test_a_tiled_model_gives_an_image_of_one_tile_what_the_plain_one_does(small, tile_batch):
    batch = tile_batch((1, 1), (1, 1))
    torch.testing.assert_close(small(max_tiles=4).represent(batch), small(max_tiles=1).represent(batch))


@pytest.mark.parametrize("fields", [{"max_tiles": 4}, {"pool": "mean", "head": "linear"}])
def test_gradients_reach_every_parameter(small, tile_batch, fields):
    model = small(noise=0.1, **fields).train()
    batch = tile_batch(*GRIDS) if "max_tiles" in fields else tile_batch((1, 1), (1, 1))
    model(batch).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fixed_positions_are_not_trained(small, tile_batch):
    model = small(position="sincos2d", noise=0.0)
    fixed = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert fixed == ["encoder.token_pos_embedding.local"]
    table = model.encoder.token_pos_embedding.local
    assert not table[0].any()
    assert torch.equal(table[1, :16], torch.tensor([0.0] * 8 + [1.0] * 8))
    x, y = 2, 1  # sin x, cos x, sin y, cos y
    expected = torch.tensor([x, x, y, y]).sin()
    expected[1::2] = torch.tensor([x, y]).cos()
    torch.testing.assert_close(table[1 + 4 * y + x, ::8], expected)


def test_bfloat16_weights_give_float32_logits_near_the_full_ones(small, tile_batch):
    model = small(max_tiles=4, noise=0.1)
    batch = tile_batch(*GRIDS)
    logits = copy.deepcopy(model).bfloat16()(batch)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(batch), atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(batch), atol=0.1, rtol=0.1)


def test_dropout_acts_in_training_only(small, tile_batch):
    model = small(dropout=0.5, drop_path=0.5, noise=0.1)
    batch = tile_batch((1, 1), (1, 1))
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_wrong_images_are_refused(small, tile_batch):
    model = small()
    with pytest.raises(ValueError, match="must be 32x32"):
        model(torch.randn(2, 3, 40, 32))
    with pytest.raises(ValueError, match="3 tiles, but this model is for at most 2"):
        small(max_tiles=2)(tile_batch((3, 1)))
    with pytest.raises(ValueError, match="at most 1"):
        model(tile_batch((1, 2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "vit_b61x"}, r"model\.name.*vit_b16"),
        ({"embed_dim": 100}, r"model\.embed_dim is 100.*model\.num_heads"),
        ({"pool": "max"}, r"model\.pool.*cls \| mean"),
        ({"head": "none"}, r"model\.head.*mlp \| linear"),
        ({"activation": "swish"}, r"model\.activation"),
        ({"num_layers": 0}, r"model\.num_layers is 0"),
        ({"drop_path": 1.0}, r"model\.drop_path"),
        ({"patch_size": 15}, r"data\.tile_size is 224.*multiple of 15.*210 or 225"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    config = ModelConfig(**({"name": "vit_s16"} | fields))
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        Classifier(config, **PLAIN, **PIXELS)
