"""Masked patches: what is corrupted, and what is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import add_noise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_tools.tile_batch import TileBatch
from pretrain.config.schema import ModelConfig
from pretrain.model.flops import forward_flops
from pretrain.model.init import initialize
from pretrain.model.masked import MaskedPatches, corruption, mean_colours

GRIDS = ((1, 2), (1, 1), (2, 2), (1, 1))


@pytest.fixture
def model(small_config: Callable[..., ModelConfig]) -> Callable[..., MaskedPatches]:
    def build(max_tiles: int = 4, seed: int = 0, noise: float = 0.1, **fields: object) -> MaskedPatches:
        sizes = {"tile_size": 32, "max_tiles": max_tiles, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        built = MaskedPatches(small_config(**fields), **sizes, seed=seed)
        initialize(built, seed=0)
        add_noise(built, noise)
        return built.train()

    return build


def select(batch: TileBatch, image: int) -> TileBatch:
    """A batch of one of the images of `batch`."""
    tiles = batch.tiles.split(batch.tiles_per_image.tolist())[image]
    rows = {name: getattr(batch, name)[image : image + 1] for name in ("tiles_per_image", "grid", "position")}
    return replace(batch, tiles=tiles, **rows)


def test_half_of_the_patches_of_an_image_are_corrupted_in_the_papers_proportions(tile_batch) -> None:
    batch = tile_batch(*[(1, 1)] * 300)
    plan = corruption(batch, [(300, 1)], 196, seed=3)
    chosen = plan.chosen.view(300, 98)
    assert (chosen // 196 == torch.arange(300)[:, None]).all()
    assert all(len(set(row)) == 98 for row in chosen.tolist())
    assert len(plan.masked) / len(plan.chosen.flatten()) == pytest.approx(0.8, abs=0.01)
    assert len(plan.swapped) / len(plan.chosen.flatten()) == pytest.approx(0.1, abs=0.01)
    assert set(plan.masked.tolist()) | set(plan.swapped.tolist()) <= set(plan.chosen.flatten().tolist())
    assert not set(plan.masked.tolist()) & set(plan.swapped.tolist())
    assert (plan.swapped // 196 == plan.taken_from // 196).all()
    assert (plan.swapped != plan.taken_from).all()
    assert chosen.flatten().bincount(minlength=300 * 196).view(300, 196).float().mean(0).std() < 0.05


def test_colours_are_three_bits_of_the_mean_of_each_channel() -> None:
    tiles = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    tiles[0, 0, :2, 2:] = 255  # red in the second patch
    tiles[0, 1, 2:, :2] = torch.tensor([[31, 31], [32, 34]])  # the mean of green in the third is 32
    tiles[0, 2, 2:, 2:] = torch.tensor([[31, 31], [32, 33]])  # of blue in the fourth just below it
    assert mean_colours(tiles, 2, 2).tolist() == [[0, 7 * 64, 8, 0]]


def test_the_loss_is_the_cross_entropy_of_the_corrupted_patches(model, tile_batch) -> None:
    net, batch = model(registers=1), tile_batch(*GRIDS)
    found = net(batch)
    for image in range(len(GRIDS)):
        alone = select(batch, image)
        packing = net.encoder.packing(alone.grid, torch.device("cpu"))
        plan = corruption(alone, packing.groups, 16, seed=0)
        embedded = net.encoder.patch_embed(net.pixels.normalise(alone.tiles)).flatten(0, 1)
        patches = embedded.clone()
        for to, source in zip(plan.swapped.tolist(), plan.taken_from.tolist(), strict=True):
            patches[to] = embedded[source]
        patches[plan.masked] = net.encoder.mask_token
        net.encoder.patch_embed.forward = lambda tiles, patches=patches: patches.view(len(tiles), 16, -1)
        x, _ = net.encoder.encode(net.pixels.normalise(alone.tiles), packing)
        del net.encoder.patch_embed.forward
        logits = net.head(x[:, 2:].flatten(0, 1)[plan.chosen])
        colours = mean_colours(alone.tiles, 4, 4).flatten()[plan.chosen]
        expected = torch.stack(
            [F.cross_entropy(logits, colours), (logits.argmax(-1) == colours).float().mean()]
        )
        torch.testing.assert_close(found[image], expected, atol=1e-5, rtol=1e-5)


def test_corruption_depends_on_seed_and_position_and_in_evaluation_on_neither_seed_nor_mates(
    model, tile_batch
) -> None:
    batch = tile_batch(*GRIDS)
    one, other = model(seed=0), model(seed=1)
    for image in range(len(GRIDS)):
        torch.testing.assert_close(one(select(batch, image))[0], one(batch)[image], atol=1e-5, rtol=1e-5)
    assert (one(batch)[:, 0] != other(batch)[:, 0]).all()
    moved = replace(batch, position=batch.position + 100)
    assert (one(batch)[:, 0] != one(moved)[:, 0]).all()
    assert torch.equal(one.eval()(batch), other.eval()(batch))


@pytest.mark.parametrize(
    "fields", [{}, {"pool": "map", "max_tiles": 4}, {"pool": "mean", "final_norm": "pooled", "max_tiles": 1}]
)
def test_gradients_reach_every_parameter(model, tile_batch, fields) -> None:
    net = model(**fields)
    batch = tile_batch(*GRIDS) if net.geometry.max_tiles > 1 else tile_batch((1, 1), (1, 1))
    net(batch)[:, 0].sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_flops_are_those_of_torch(model, tile_batch, grid) -> None:
    net = model(pool="map")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(tile_batch(grid, grid))
    sizes = {"tile_size": 32, "num_classes": 512, "tiles": grid[0] * grid[1]}
    assert counter.get_total_flops() == 2 * forward_flops(net.config, **sizes, masked=True)
