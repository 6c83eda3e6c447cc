"""No padding tile is computed or attended to, and no image sees another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.model import (
    Block,
    TiledTokenPositionalEmbedding,
    TilePositionalEmbedding,
    TokenPositionalEmbedding,
    VisionTransformer,
)
from pretrain.model.attention import attention
from pretrain.model.packing import Packing

GRIDS = ((1, 2), (1, 1), (2, 2), (3, 1), (1, 1), (2, 1))


def vit(**changed: object) -> VisionTransformer:
    """In double precision: equal numbers are then equal on every processor, however it rounds."""
    torch.manual_seed(0)
    arguments = {
        "patch_size": 8,
        "tile_size": 16,
        "num_layers": 2,
        "embed_dim": 16,
        "layer": Block(16, 2, 32),
        "token_pos_embedding": TiledTokenPositionalEmbedding(3, 16, 16, 8),
        "pre_tile_pos_embed": TilePositionalEmbedding(3, 16),
        "post_tile_pos_embed": TilePositionalEmbedding(3, 16),
    }
    model = VisionTransformer(**(arguments | changed)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_packed_tiles_know_their_image_and_place():
    grid = torch.tensor(GRIDS)
    packing = Packing.of(grid, 5, torch.device("cpu"))
    assert packing.groups == ((2, 1), (2, 2), (1, 3), (1, 4))
    assert packing.images == 6
    assert packing.max_length == 20
    assert packing.offsets.tolist() == [0, 5, 10, 20, 30, 45, 65]
    assert packing.offsets.dtype == torch.int32
    tiles = [(i, r, c) for i, (h, w) in enumerate(GRIDS) for r in range(h) for c in range(w)]
    packed = packing.pack(torch.tensor(tiles))
    assert packed[:, 0].tolist() == [1, 4, 0, 0, 5, 5, 3, 3, 3, 2, 2, 2, 2]
    assert packed[:, 1].tolist() == packing.row.tolist()
    assert packed[:, 2].tolist() == packing.column.tolist()
    assert packing.unpack(packed).tolist() == [list(tile) for tile in tiles]
    means = packing.image_means(packed[:, :1].float())
    assert means[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_equal_images_are_packed_as_they_come():
    packing = Packing.of(torch.tensor([(1, 2), (2, 1)]), 5, torch.device("cpu"))
    assert packing.order is None
    assert packing.row.tolist() == [0, 0, 0, 1]
    assert packing.column.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("grid", [[(1, 0)], [(-1, -1)], [(1.0, 1.0)], [1, 1]])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(ValueError, match=r"tiles|grid"):
        Packing.of(torch.tensor(grid), 5, torch.device("cpu"))


def test_attention_is_softmax_within_each_image():
    packing = Packing.of(torch.tensor(GRIDS), 3, torch.device("cpu"))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, int(packing.offsets[-1]), 2, 4, dtype=torch.float64)
    image = packing.image.repeat_interleave(3)
    scores = torch.einsum("qhd,khd->hqk", q, k) / 2
    scores = scores.masked_fill(image[:, None] != image[None], -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", F.softmax(scores, -1), v)
    torch.testing.assert_close(attention(q, k, v, packing), expected)


def padded(tiles: int, fill: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of GRIDS as (2, 3, tiles, 3, 16, 16), and their grid."""
    images = torch.full((6, tiles, 3, 16, 16), fill, dtype=torch.float64)
    for index, (rows, columns) in enumerate(GRIDS):
        generator = torch.Generator().manual_seed(index)
        real = torch.randn(rows * columns, 3, 16, 16, generator=generator, dtype=torch.float64)
        images[index, : rows * columns] = real
    return images.unflatten(0, (2, 3)), torch.tensor(GRIDS).unflatten(0, (2, 3))


def test_padding_tiles_change_nothing():
    model = vit(out_indices=[1])
    x, (hidden,) = model(*padded(4))
    wider, (wider_hidden,) = model(*padded(7, fill=float("nan")))
    assert wider.shape == (2, 3, 7, 5, 16)
    torch.testing.assert_close(wider[:, :, :4], x, atol=1e-12, rtol=0)
    torch.testing.assert_close(wider_hidden[:, :, :4], hidden, atol=1e-12, rtol=0)
    assert not wider[:, :, 4:].any()


def test_an_image_does_not_depend_on_its_batch_mates():
    model = vit()
    images, grid = padded(4)
    together, _ = model(images, grid)
    for i, j in [(0, 0), (0, 2), (1, 0), (1, 2)]:
        alone, _ = model(images[i : i + 1, j : j + 1], grid[i : i + 1, j : j + 1])
        torch.testing.assert_close(alone[0, 0], together[i, j], atol=1e-12, rtol=0)


def test_no_padding_tile_is_computed():
    model = vit()
    rows = []
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda m, args, out: rows.append(out.shape))
    model(*padded(7))
    real = sum(h * w for h, w in GRIDS)
    assert rows
    assert {shape[:-1].numel() for shape in rows} <= {real * 4, real * 5}


def test_class_token_can_be_left_out():
    model = vit(
        class_token=False,
        token_pos_embedding=TiledTokenPositionalEmbedding(3, 16, 16, 8, class_token=False),
    )
    x, _ = model(*padded(4))
    assert x.shape == (2, 3, 4, 4, 16)
    with pytest.raises(ValueError, match="class token"):
        vit(class_token=False, cls_projection=nn.Identity())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tile_size": 0}, "tile_size must be > 0"),
        ({"patch_size": -1}, "patch_size must be > 0"),
        ({"tile_size": 30}, "tile_size 30 is not a multiple of patch_size 8: the nearest is 24 or 32"),
        ({"tile_size": (16, 4)}, "tile_size 4 is not a multiple of patch_size 8: the nearest is 8"),
        ({"out_indices": [0, 1, 1]}, r"len\(out_indices\) must be <= num_layers"),
        ({"out_indices": [2]}, "out_indices must be in"),
    ],
)
def test_wrong_sizes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        vit(**changed)


def test_wrong_images_are_refused():
    model = vit()
    images, grid = padded(4)
    with pytest.raises(ValueError, match="aspect_ratio was not provided"):
        model(images)
    with pytest.raises(ValueError, match="asks for 4 tiles, more than the 3"):
        model(images[:, :, :3], grid)
    with pytest.raises(ValueError, match="16x8, but must be 16x16"):
        model(images[..., :8], grid)
    with pytest.raises(ValueError, match="2 channels, but must have 3"):
        model(images[:, :, :, :2], grid)
    with pytest.raises(ValueError, match="bsz, n_imgs, n_tiles"):
        model(images[0], grid)
    with pytest.raises(ValueError, match="positions end at 3"):
        model(images, torch.tensor([1, 4]).expand(2, 3, 2))
    with pytest.raises(ValueError, match="aspect_ratio must be"):
        model(images, grid[0])


def test_one_tile_needs_no_aspect_ratio():
    model = vit(
        token_pos_embedding=TokenPositionalEmbedding(16, 16, 8),
        pre_tile_pos_embed=None,
        post_tile_pos_embed=None,
    )
    images = torch.randn(2, 3, 1, 3, 16, 16)
    x, _ = model(images)
    same, _ = model(images, torch.ones(2, 3, 2, dtype=torch.int64))
    assert torch.equal(x, same)


def test_drop_path_keeps_or_drops_whole_images_and_grows_with_depth():
    model = vit(num_layers=3, drop_path=0.2)
    assert [float(block.keep) for block in model.layers] == pytest.approx([1.0, 0.9, 0.8])
    block = Block(16, 2, 32, drop_path=0.5).train()
    packing = Packing.of(torch.tensor([(1, 2)] * 400), 3, torch.device("cpu"))
    torch.manual_seed(0)
    scale = block._drop_path(torch.ones(800, 3, 16), packing).unflatten(0, (400, 2))
    assert (scale == scale[:, :1, :1, :1]).all()
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert 0.8 < scale.mean() < 1.2
    assert torch.equal(block.eval()._drop_path(torch.ones(800, 3, 16), packing), torch.ones(800, 3, 16))


def test_padding_images_have_no_tile_and_change_nothing():
    model = vit(num_layers=2)
    images = torch.randn(2, 3, 4, 3, 16, 16, dtype=torch.float64)
    grid = torch.tensor([[(1, 2), (0, 0), (2, 2)], [(1, 1), (2, 1), (0, 0)]])
    x, _ = model(images, grid)
    assert (x[0, 1] == 0).all() and (x[1, 2] == 0).all()
    alone, _ = model(images[1:, :2], grid[1:, :2])
    torch.testing.assert_close(x[1, :2], alone[0], atol=1e-12, rtol=0)


def test_attention_dropout_leaves_out_weights_in_training_alone():
    block = Block(16, 2, 32, attention_dropout=0.5)
    packing = Packing.of(torch.tensor([(1, 2), (1, 1)]), 3, torch.device("cpu"))
    x = torch.randn(3, 3, 16)
    assert torch.equal(block.eval()(x, packing), block(x, packing))
    assert not torch.equal(block.train()(x, packing), block(x, packing))
    # What is left out is made up for by what stays, so that the mean is what it is without.
    attend = block.attn
    mean = torch.stack([attend(x, packing) for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, attend.eval()(x, packing), atol=0.05)
