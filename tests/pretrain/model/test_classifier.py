"""The classifier from pixels to logits."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from data_tools.errors import UsageError
from pretrain.config.schema import BackboneConfig, ModelConfig
from pretrain.model import Classifier
from pretrain.model.inspection import inspect
from pretrain.model.packing import Packing
from pretrain.model.variants import HYBRIDS, USUAL_NAMES

GRIDS = ((1, 2), (1, 1), (2, 2), (3, 1), (1, 1))
OPTIONS = {
    "plain": {},
    "mean": {"pool": "mean", "head": "linear"},
    "map": {"pool": "map"},
    "map of registers": {"pool": "map", "registers": 3, "head": "linear"},
    "registers": {"registers": 2},
    "parallel": {"parallel": True, "qk_norm": True, "qkv_bias": False},
    "layer scale": {"layer_scale": 0.1, "activation": "silu", "pool": "mean", "registers": 1},
    "rotary": {"position": "rope2d", "norm": "rms", "mlp": "swiglu", "qk_norm": True, "registers": 2},
    "rotary in tiles": {"use_rope": True, "norm": "rms", "pool": "map"},
    "scaled parallel": {"layer_scale": 0.1, "parallel": True, "position": "sincos2d", "pool": "map"},
}
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
        ("vit_G14", 1844.441),
    ],
)
def test_parameter_counts_are_the_published_ones(name, millions):
    with torch.device("meta"):
        model = Classifier(ModelConfig(name=name, head="linear"), **PLAIN, **PIXELS)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def test_the_kernels_of_22b_are_as_many_as_published():
    with torch.device("meta"):
        model = Classifier(ModelConfig(name="vit_22b14", pool="map"), **PLAIN, **PIXELS)
    kernels = (p.numel() for p in model.blocks.parameters() if p.ndim > 1)
    assert sum(kernels) / 1e6 == pytest.approx(21743, abs=0.5)
    assert not any(name.endswith("qkv.bias") or "norm2" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_first_logits_are_the_head_bias(small, tile_batch, head, pool):
    model = small(head=head, pool=pool, head_bias=-10.0, max_tiles=4)
    logits = model(tile_batch(*GRIDS))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.full((5, 5), -10.0))


@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
def test_an_image_does_not_depend_on_its_batch_mates(small, tile_batch, fields):
    model = small(max_tiles=4, noise=0.1, **fields).double()
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


@pytest.mark.parametrize("max_tiles", [1, 4])
@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
def test_gradients_reach_every_parameter(small, tile_batch, fields, max_tiles):
    model = small(noise=0.1, max_tiles=max_tiles, **fields).train()
    batch = tile_batch(*GRIDS) if max_tiles > 1 else tile_batch((1, 1), (1, 1))
    model(batch).square().sum().backward()
    assert untouched(model) == []


@pytest.mark.parametrize("name", USUAL_NAMES)
def test_gradients_reach_every_parameter_of_every_variant(small, name):
    fields: dict = {"patch_size": 8, "tile_size": 32}
    if name in HYBRIDS:
        narrow = BackboneConfig(depths=list(HYBRIDS[name][1]), stem=8, groups=8)
        fields = {"patch_size": None, "tile_size": 64, "backbone": narrow}
    model = small(name=name, noise=0.05, **fields).train()
    model(torch.randn(2, 3, fields["tile_size"], fields["tile_size"])).square().sum().backward()
    assert untouched(model) == []


def untouched(model):
    """Trained parameters without a gradient."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return [name for name, p in trained if p.grad is None or not p.grad.any()]


def test_a_parallel_block_adds_both_branches_of_one_norm(small):
    block = small(parallel=True, layer_scale=0.5, noise=0.1).blocks[0]
    packing = Packing.of(torch.tensor([(1, 2), (1, 1)]), 5, torch.device("cpu"))
    x = torch.randn(3, 5, 32)
    normed = block.norm1(x)
    expected = x + block.attn(normed, packing) * block.ls1.gamma + block.mlp(normed) * block.ls2.gamma
    torch.testing.assert_close(block(x, packing), expected)


def test_queries_and_keys_are_normalised_for_each_head(small):
    attn = small(qk_norm=True, noise=0.1).blocks[0].attn
    packing = Packing.of(torch.tensor([(1, 1)]), 5, torch.device("cpu"))
    x = torch.randn(1, 5, 32)
    q, k, v = (part.view(1, 5, 4, 8).transpose(1, 2) for part in attn.qkv(x).chunk(3, -1))
    out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
    torch.testing.assert_close(attn(x, packing), attn.proj(out.transpose(1, 2).flatten(2)))
    with torch.no_grad():
        before = attn(x, packing)
        attn.qkv.weight[:64].mul_(7)
        attn.qkv.bias[:64].mul_(7)
        torch.testing.assert_close(attn(x, packing), before, atol=1e-4, rtol=1e-4)


def test_registers_are_attended_to_and_hidden_from_the_pool(small, tile_batch):
    model = small(registers=2, pool="mean", noise=0.1)
    batch = tile_batch((1, 1))
    before = model(batch)
    seen = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    packing = model.encoder.packing(batch.grid, batch.tiles.device)
    tokens, _ = model.encoder.encode(model.pixels.normalise(batch.tiles), packing)
    model(batch)
    assert tokens.shape == (1, 18, 32)
    torch.testing.assert_close(seen[0], tokens[:, 2:].mean(1))
    with torch.no_grad():
        model.encoder.register_tokens.neg_()
    assert not torch.allclose(model(batch), before)


def test_an_attention_pool_is_multi_head_attention_of_one_query(small, tile_batch):
    pool = small(pool="map", noise=0.1).pool
    packing = Packing.of(torch.tensor([(1, 2), (1, 1)]), 5, torch.device("cpu"))
    x = torch.randn(3, 5, 32)
    pooled = pool(x, packing)
    peer = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([pool.q.weight, pool.kv.weight]))
        peer.in_proj_bias.copy_(torch.cat([pool.q.bias, pool.kv.bias]))
    peer.out_proj = pool.proj
    for row, image in zip(pooled, (x[:1], x[1:]), strict=True):  # packed: one tile, then two
        tokens = image.reshape(1, -1, 32)
        attended, _ = peer(pool.probe.view(1, 1, -1), tokens, tokens)
        torch.testing.assert_close(row, (attended + pool.mlp(pool.norm(attended)))[0, 0])


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


@pytest.mark.parametrize("fields", OPTIONS.values(), ids=OPTIONS)
def test_bfloat16_gives_float32_logits_near_the_full_ones(small, tile_batch, fields):
    model = small(max_tiles=4, noise=0.1, **fields)
    batch = tile_batch(*GRIDS)
    wanted = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch)
    for logits in (copy.deepcopy(model).bfloat16()(batch), mixed):
        assert logits.dtype == torch.float32
        assert (logits - wanted).norm() < 0.05 * wanted.norm()  # a gated MLP rounds a product more


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
    with pytest.raises(ValueError, match=r"must be \(T, C, height, width\), got \(3, 32, 32\)"):
        model(torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="1 channels, but must have 3"):
        model(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 tiles do not fit a grid of 4"):
        small(max_tiles=4)(replace(tile_batch((3, 1)), grid=torch.tensor([[2, 2]])))
    with pytest.raises(ValueError, match="3 tiles, but this model is for at most 2"):
        small(max_tiles=2)(tile_batch((3, 1)))
    with pytest.raises(ValueError, match="at most 1"):
        model(tile_batch((1, 2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "vit_b61x"}, r"model\.name.*vit_b16"),
        ({"embed_dim": 100}, r"model\.embed_dim is 100.*model\.num_heads"),
        ({"pool": "max"}, r"model\.pool=max.*cls, mean, map"),
        ({"registers": -1}, r"model\.registers=-1"),
        ({"layer_scale": 0.0}, r"model\.layer_scale=0\.0"),
        ({"head": "none"}, r"model\.head=none.*mlp, linear"),
        ({"activation": "swish"}, r"model\.activation"),
        ({"num_layers": 0}, r"model\.num_layers=0"),
        ({"drop_path": 1.0}, r"model\.drop_path"),
        ({"patch_size": 15}, r"data\.tile_size is 224.*multiple of 15.*210 or 225"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    config = ModelConfig(**({"name": "vit_s16"} | fields))
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        Classifier(config, **PLAIN, **PIXELS)


def test_images_need_not_be_square(small):
    model = small(noise=0.1, tile_size=(24, 40))
    assert model.geometry.grid == (3, 5)
    assert model(torch.randn(2, 3, 24, 40)).shape == (2, 5)
    with pytest.raises(ValueError, match="40x24, but must be 24x40"):
        model(torch.randn(2, 3, 40, 24))


def test_the_class_token_may_stand_beside_another_pool(small, tile_batch):
    model = small(noise=0.1, pool="mean", class_token=True, final_norm="pooled", max_tiles=1)
    batch = tile_batch((1, 1), (1, 1))
    tokens = inspect(model, batch).tokens
    assert tokens.shape == (2, 17, 32)
    expected = model.head(model.pool_norm(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(model(batch), expected)


def test_float64_stays(small):
    model = small(noise=0.1).double()
    logits = model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert logits.dtype == torch.float64
