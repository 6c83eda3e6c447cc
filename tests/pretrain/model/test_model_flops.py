"""Counted operations against what torch counts while the model runs."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.flops import forward_flops, training_flops


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_forward_flops_are_those_of_torch(small, tile_batch, pool, head, grid):
    model = small(max_tiles=4, pool=pool, head=head, head_hidden=20 if head == "mlp" else None)
    # The fused CPU kernel has no formula in torch; its plain form is two matrix products, which
    # have.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tile_batch(grid, grid, grid))
    tiles = grid[0] * grid[1]
    flops = forward_flops(model.config, tile_size=32, num_classes=5, tiles=tiles)
    assert 3 * flops == counter.get_total_flops()
    assert training_flops(model.config, tile_size=32, num_classes=5, tiles=tiles) == 3 * flops


def test_published_sizes(small_config):
    config = small_config(
        embed_dim=768, num_layers=12, num_heads=12, mlp_dim=3072, patch_size=16, head="linear"
    )
    billions = training_flops(config, tile_size=224, num_classes=1000) / 1e9
    assert billions == pytest.approx(105.4, abs=0.1)
