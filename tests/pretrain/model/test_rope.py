"""Rotary positions: torchtune's, DINOv3's, and what they mean for images of several tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.errors import UsageError
from finetune.formats import load_peer, to_peer
from pretrain.model.packing import Packing
from pretrain.model.rope import image_rotation

ARRAYS = Path(__file__).parents[2] / "references/arrays"


def turned(grid: tuple[int, int], tiles: tuple[int, int], x: torch.Tensor, before: int = 0) -> torch.Tensor:
    """Queries (N, heads, d) of one image of `tiles` rows and columns of tiles with `grid` patches each."""
    packing = Packing.of(torch.tensor([tiles]), before + grid[0] * grid[1], torch.device("cpu"))
    return image_rotation(x.shape[-1], 4).rotation(packing, grid, before, 0).turn(x)


@pytest.mark.parametrize("name", ["tiles", "one_tile_class_last"])
def test_torchtunes_rotary_positions_give_its_outputs(name: str) -> None:
    """Arrays of torchtune itself: tests/references/record.py."""
    with np.load(ARRAYS / f"torchtune_rope_{name}.npz", allow_pickle=False) as data:
        config = json.loads(str(data["config_json"]))
        weights = {key.removeprefix("weights/"): data[key] for key in data if key.startswith("weights/")}
        images, ratio = (torch.from_numpy(data[f"inputs/{key}"]) for key in ("images", "aspect_ratio"))
        wanted, state = data["outputs/x"], data["outputs/hidden_0"]
    model = load_peer("torchtune", config, weights)
    with torch.no_grad():
        x, hidden = model(images, ratio)
        np.testing.assert_allclose(x, wanted, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(hidden[0], state, atol=1e-5, rtol=1e-5)
        model.rope = None
        assert np.abs(model(images, ratio)[0].numpy() - wanted).max() > 1e-3
    assert to_peer(load_peer("torchtune", config, weights), "torchtune")[0]["use_rope"]


def test_places_in_the_image_turn_as_in_dinov3() -> None:
    """timm's own functions, for an image of 3 rows and 5 columns of patches."""
    layers = pytest.importorskip("timm.layers.pos_embed_sincos")
    x = torch.randn(15, 2, 16, generator=torch.Generator().manual_seed(0))
    theirs = layers.RotaryEmbeddingDinoV3(16, temperature=100.0).eval().get_embed([3, 5])
    wanted = layers.apply_rot_embed_cat(x.transpose(0, 1)[None], theirs, half=True)[0].transpose(0, 1)
    torch.testing.assert_close(turned((3, 5), (1, 1), x), wanted, atol=1e-6, rtol=1e-6)


def test_patches_turn_alike_in_one_large_tile_and_in_several() -> None:
    x = torch.randn(4, 6, 2, 8, generator=torch.Generator().manual_seed(0))  # rows, columns of patches
    whole = turned((4, 6), (1, 1), x.flatten(0, 1)).unflatten(0, (4, 6))
    tiles = x.unflatten(0, (2, 2)).unflatten(2, (3, 2)).transpose(1, 2)  # tile row, tile column, row, column
    apart = turned((2, 2), (2, 3), tiles.flatten(0, 3)).view(2, 3, 2, 2, 2, 8)
    torch.testing.assert_close(apart.transpose(1, 2).flatten(2, 3).flatten(0, 1), whole)


def test_tokens_without_a_place_do_not_turn() -> None:
    x = torch.randn(2 + 4, 1, 8, generator=torch.Generator().manual_seed(0))
    found = turned((2, 2), (1, 1), x, before=2)
    assert torch.equal(found[:2], x[:2]) and not torch.allclose(found[2:], x[2:])


def test_a_model_needs_no_table_and_takes_images_of_another_size(small) -> None:
    model = small(position="rope2d", max_tiles=4, pool="cls", noise=0.1)
    assert not any("pos_embed" in name for name, _ in model.named_parameters())
    larger = model.resized(48)
    assert {name for name, _ in larger.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert larger(torch.rand(2, 3, 48, 48)).isfinite().all()


def test_the_place_of_a_patch_matters(small) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for fields in ({"position": "rope2d"}, {"use_rope": True}):
        model = small(noise=0.2, pool="mean", **fields)
        if model.encoder.token_pos_embedding is not None:
            torch.nn.init.zeros_(model.encoder.token_pos_embedding.local)
        assert (model(images) - model(images.flip(-1))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"position": "rope2d", "use_rope": True}, "model.use_rope"),
        ({"position": "rope2d", "embed_dim": 24, "num_heads": 4}, "not 6: set model.num_heads"),
    ],
)
def test_what_does_not_fit_is_refused(small, fields: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        small(**fields)
