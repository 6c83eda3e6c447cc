"""Counted operations against what torch counts while the model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.flops import forward_flops, training_flops


@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "cls", "head": "linear"},
        {"pool": "mean", "head_hidden": 20},
        {"pool": "cls", "registers": 3, "qk_norm": True, "layer_scale": 1.0},
        {"pool": "mean", "registers": 1, "parallel": True, "head": "linear"},
        {"pool": "mean", "mlp": "swiglu", "norm": "rms", "position": "rope2d"},
    ],
)
@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_forward_flops_are_those_of_torch(small, tile_batch, fields, grid):
    model = small(max_tiles=4, **fields)
    # The fused CPU kernel has no formula in torch; its plain form is two matrix products, which
    # have.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tile_batch(grid, grid, grid))
    tiles = grid[0] * grid[1]
    flops = forward_flops(model.config, tile_size=32, num_classes=5, tiles=tiles)
    assert 3 * flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "side", "tiles"),
    [("vit_ti16", 32, 1), ("vit_ti16", 32, 4), ("hybrid_r26_s32", 64, 1), ("hybrid_r_ti16", 64, 4)],
)
def test_forward_flops_of_attention_pooling_and_hybrids_are_those_of_torch(small, name, side, tiles):
    # The pool's query is projected once for the whole batch: a few thousandths even here.
    grid = {1: (1, 1), 4: (2, 2)}[tiles]
    patch = 8 if name == "vit_ti16" else None
    model = small(name=name, patch_size=patch, tile_size=side, pool="map", registers=2, max_tiles=4)
    pixels = torch.zeros(2 * tiles, 3, side, side)
    packing = model.encoder.packing(torch.tensor([grid] * 2), pixels.device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        x, _ = model.encoder.encode(pixels, packing)
        model.head(model.pool(x[:, 2:], packing))
    flops = forward_flops(model.config, tile_size=side, num_classes=5, tiles=tiles)
    assert 2 * flops == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.parametrize(
    ("fields", "side"),
    [
        ({"pool": "cls"}, 32),
        ({"pool": "mean", "registers": 1, "qk_norm": True, "head": "linear"}, 32),
        ({"name": "hybrid_r26_s32", "patch_size": None}, 64),
    ],
)
@pytest.mark.parametrize("grid", [(1, 1), (1, 2)])
def test_training_flops_are_those_of_torch(small, fields, side, grid):
    model = small(max_tiles=2, tile_size=side, **fields)
    packing = model.encoder.packing(torch.tensor([grid] * 2), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        x, _ = model.encoder.encode(torch.zeros(2 * grid[0] * grid[1], 3, side, side), packing)
        model.head(model.pooled(x, packing)).sum().backward()
    flops = training_flops(model.config, tile_size=side, num_classes=5, tiles=grid[0] * grid[1])
    assert 2 * flops == pytest.approx(counter.get_total_flops(), rel=0.005)


def test_published_sizes(small_config):
    config = small_config(
        embed_dim=768, num_layers=12, num_heads=12, mlp_dim=3072, patch_size=16, head="linear"
    )
    billions = forward_flops(config, tile_size=224, num_classes=1000) / 1e9
    assert billions == pytest.approx(105.4 / 3, abs=0.03)
