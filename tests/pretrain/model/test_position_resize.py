"""Position tables on another grid: the numbers of the paper's code and of timm."""

import pytest
import torch

from pretrain.model.resize import (
    Geometry,
    adapt_positions,
    fold_tiles,
    is_position_table,
    resize_grid,
    resize_tiles,
)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (4, 8), (14, 21), (14, 28)])
def test_one_and_a_half_and_twice_the_grid_equal_scipys_zoom(old, new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    table = torch.randn(1 + old * old, 5)
    grid = table[1:].view(old, old, 5).numpy()
    expected = torch.from_numpy(zoom(grid, (new / old, new / old, 1), order=1)).reshape(new * new, 5)
    resized = resize_grid(table, (old, old), (new, new), 1, "bilinear")
    torch.testing.assert_close(resized, torch.cat([table[:1], expected]), atol=3e-6, rtol=0)


def test_the_same_grid_gives_the_same_tensor():
    table = torch.randn(17, 6)
    assert resize_grid(table, (4, 4), (4, 4), 1, "bicubic") is table
    assert resize_grid(table, (4, 4), [4, 4], 1, "bilinear") is table


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_grids_keep_their_form_and_type_and_prefixes_their_bits(mode):
    table = torch.randn(2 + 12, 6).bfloat16()
    resized = resize_grid(table, (3, 4), (7, 5), 2, mode)
    assert resized.dtype == torch.bfloat16
    assert resized.shape == (37, 6)
    assert torch.equal(resized[:2], table[:2])
    as_grid = resize_grid(table[2:].unflatten(0, (3, 4)), (3, 4), (7, 5), mode=mode)
    assert as_grid.shape == (7, 5, 6)
    assert torch.equal(as_grid.flatten(0, 1), resized[2:])


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match="mode"):
        resize_grid(torch.zeros(16, 2), (4, 4), (5, 5), 0, "nearest")
    with pytest.raises(ValueError, match="1 \\+ 4x4"):
        resize_grid(torch.zeros(16, 2), (4, 4), (5, 5), 1)
    with pytest.raises(ValueError, match="2x8"):
        resize_grid(torch.zeros(4, 4, 2), (2, 8), (5, 5))


def test_tiles_keep_their_place():
    table = torch.randn(3, 3, 1, 4)
    assert resize_tiles(table, 3) is table
    assert torch.equal(resize_tiles(table, 2), table[:2, :2])
    wider = resize_tiles(table, 5)
    assert torch.equal(wider[:3, :3], table)
    assert not wider[3:].any()
    assert not wider[:, 3:].any()


def adapted(model, other, mode: str = "bilinear") -> dict[str, torch.Tensor]:
    """The state of `model` with its tables fitted to `other`."""
    return {
        name: adapt_positions(name, value, model.geometry, other.geometry, mode)
        if is_position_table(name)
        else value
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize(("tiles", "size"), [(4, 48), (2, 32), (6, 32), (2, 48)])
def test_adapted_tables_fit_the_other_model(small, tiles, size):
    model, other = small(max_tiles=4, noise=0.1), small(max_tiles=tiles, tile_size=size)
    state = adapted(model, other)
    other.load_state_dict(state)
    cell = model.encoder.token_pos_embedding.global_[1, 0]
    expected = resize_grid(cell, (4, 4), other.geometry.grid, 1)
    assert torch.equal(state["encoder.token_pos_embedding.global_"][1, 0], expected)
    assert sum(map(is_position_table, state)) == 4


def test_more_tiles_change_nothing_for_images_that_fitted_before(small, tile_batch):
    model, other = small(max_tiles=3, noise=0.1), small(max_tiles=5)
    other.load_state_dict(adapted(model, other))
    batch = tile_batch((1, 2), (3, 1), (1, 1))
    torch.testing.assert_close(other(batch), model(batch))


def test_one_tile_becomes_several(small, tile_batch):
    model, other = small(noise=0.1), small(max_tiles=4)
    missing = other.load_state_dict(adapted(model, other), strict=False)
    assert missing.unexpected_keys == []
    assert len(missing.missing_keys) == 6
    batch = tile_batch((1, 1), (1, 1))
    torch.testing.assert_close(other(batch), model(batch))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_several_tiles_become_one(small, tile_batch, pool):
    model, other = small(max_tiles=4, noise=0.1, pool=pool), small(pool=pool)
    state = fold_tiles(model.state_dict(), model.geometry.prefix)
    other.load_state_dict(state)
    batch = tile_batch((1, 1), (1, 1))
    torch.testing.assert_close(other(batch), model(batch), atol=1e-5, rtol=1e-5)
    assert fold_tiles(state, 1) is state


def test_what_is_no_table_or_has_other_prefixes_is_refused():
    small, large = Geometry((4, 4), 1, 1), Geometry((6, 6), 1, 0)
    with pytest.raises(ValueError, match="prefix"):
        adapt_positions("encoder.token_pos_embedding.local", torch.zeros(17, 2), small, large)
    with pytest.raises(ValueError, match="no position table"):
        adapt_positions("encoder.ln_post.bias", torch.zeros(2), small, small)
