"""Attention rollout: from the pooled tokens back to the patches of the image."""

import pytest
import torch

from pretrain.model.inspection import inspect, rolled_out


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1)])
def test_it_is_the_product_of_the_layers_maps_laid_out_as_the_image_is(small, tile_batch, pool, grid):
    model = small(max_tiles=4, noise=0.3, pool=pool, registers=1)
    batch = tile_batch((2, 2), grid)
    with torch.no_grad():
        with rolled_out(model) as rollout:
            logits = model(batch)
        torch.testing.assert_close(model(batch), logits)
        found = rollout.patches(model, 1, *grid)
        own = len(batch.tiles[4:]) * model.encoder.tokens_per_tile
        flow = torch.eye(own)
        for maps in inspect(model, batch).attentions:
            flow = (maps[1, :, :own, :own].mean(0) + torch.eye(len(flow))) / 2 @ flow
    torch.testing.assert_close(flow.sum(1), torch.ones(len(flow)))
    rows, columns = grid
    down, across = model.geometry.grid
    assert found.shape == (rows * down, columns * across)
    prefix, tokens = model.encoder.prefix, model.encoder.tokens_per_tile
    asked = [
        tile * tokens + token
        for tile in range(rows * columns)
        for token in ([0] if pool == "cls" else range(prefix, tokens))
    ]
    for y in range(rows * down):
        for x in range(columns * across):
            tile = y // down * columns + x // across
            patch = tile * tokens + prefix + y % down * across + x % across
            torch.testing.assert_close(found[y, x], flow[asked, patch].mean())
