from __future__ import annotations

import numpy as np
import pytest
import torch

from data_tools.augment.mix import Mix, beta_quantiles
from data_tools.errors import UsageError
from data_tools.tile_batch import TileBatch

SIZE = 32


def batch_of(
    grids: list[tuple[int, int]], first_position: int = 0, labels: torch.Tensor | None = None
) -> TileBatch:
    """Image i is even grey of the value 10 i + 10, its label is i."""
    count = len(grids)
    tiles = [
        torch.full((r * c, 3, SIZE, SIZE), 6 * i + 10, dtype=torch.uint8) for i, (r, c) in enumerate(grids)
    ]
    return TileBatch(
        tiles=torch.cat(tiles),
        tiles_per_image=torch.tensor([r * c for r, c in grids]),
        grid=torch.tensor(grids),
        labels=torch.arange(count) if labels is None else labels,
        weight=torch.ones(count),
        position=torch.arange(first_position, first_position + count),
        sample=torch.arange(count),
    )


def apply(mix: Mix, batch: TileBatch) -> TileBatch:
    return mix(batch, lambda function, items: [function(item) for item in items])


def images(batch: TileBatch) -> list[np.ndarray]:
    return [image.numpy() for image in batch.tiles.split(batch.tiles_per_image.tolist())]


def test_mixup_gives_both_of_a_pair_the_weight_that_the_batch_says() -> None:
    mixed = apply(Mix(0, 0.8, 0.0), batch_of([(1, 1)] * 40))
    partners = [i ^ 1 if weight < 1 else i for i, weight in enumerate(mixed.mix.tolist())]
    assert mixed.partner_labels.tolist() == partners
    assert (mixed.mix >= 0.5).all() and (mixed.mix < 1).sum() > 30 and len(set(mixed.mix.tolist())) > 10
    for i, (image, weight) in enumerate(zip(images(mixed), mixed.mix.tolist(), strict=True)):
        wanted = weight * (6 * i + 10) + (1 - weight) * (6 * (i ^ 1) + 10)
        assert image.min() == image.max() and abs(image.min() - wanted) <= 0.5


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 3)])
def test_cutmix_exchanges_a_box_of_the_weight_that_the_batch_says(grid: tuple[int, int]) -> None:
    mixed = apply(Mix(0, 0.0, 1.0), batch_of([grid] * 40))
    rows, columns = grid
    for i, (image, weight) in enumerate(zip(images(mixed), mixed.mix.tolist(), strict=True)):
        canvas = image.reshape(rows, columns, 3, SIZE, SIZE).transpose(2, 0, 3, 1, 4)
        canvas = canvas.reshape(3, rows * SIZE, columns * SIZE)
        own = canvas == 6 * i + 10
        assert (own | (canvas == 6 * (i ^ 1) + 10)).all()
        assert own.mean() == pytest.approx(weight) and weight >= 0.5
        if weight < 1:
            ys, xs = np.nonzero(~own[0])
            assert len(ys) == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)  # one box


def test_images_of_different_grids_stay_as_they_are() -> None:
    mixed = apply(Mix(0, 1.0, 1.0), batch_of([(1, 2), (2, 1), (1, 2), (1, 2)]))
    assert mixed.mix[:2].tolist() == [1, 1] and mixed.partner_labels[:2].tolist() == [0, 1]
    assert [int(image.min()) for image in images(mixed)[:2]] == [10, 16]
    assert (mixed.mix[2:] < 1).all()


def test_with_both_on_each_takes_about_half_of_the_pairs() -> None:
    mixed = apply(Mix(0, 1.0, 1.0), batch_of([(1, 1)] * 24))
    blended = 0
    for i, image in enumerate(images(mixed)):
        blended += not np.isin(image, (6 * i + 10, 6 * (i ^ 1) + 10)).all()
    assert 4 <= blended <= 20


def test_a_pair_is_mixed_alike_wherever_the_batch_is_cut() -> None:
    mix = Mix(5, 0.4, 0.4)
    together = apply(mix, batch_of([(1, 1)] * 8))
    alone = batch_of([(1, 1)] * 8)
    for k in range(4):
        part = TileBatch(
            **{
                name: getattr(alone, name)[2 * k : 2 * k + 2].clone()
                for name in ("tiles", "tiles_per_image", "grid", "labels", "weight", "position", "sample")
            }
        )
        part = apply(mix, part)
        assert torch.equal(part.tiles, together.tiles[2 * k : 2 * k + 2])
        assert torch.equal(part.mix, together.mix[2 * k : 2 * k + 2])
    other = apply(Mix(6, 0.4, 0.4), batch_of([(1, 1)] * 8))
    assert not torch.equal(other.mix, together.mix)


def test_several_labels_are_exchanged_as_rows() -> None:
    labels = torch.tensor([[1, 2], [3, -1]])
    mixed = apply(Mix(0, 1.0, 0.0), batch_of([(1, 1)] * 2, labels=labels))
    assert mixed.partner_labels.tolist() == [[3, -1], [1, 2]] and mixed.mix.shape == (2,)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_weights_follow_the_larger_side_of_a_beta_distribution(alpha: float) -> None:
    draws = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    wanted = np.quantile(np.maximum(draws, 1 - draws), [0.1, 0.3, 0.5, 0.7, 0.9])
    found = np.interp([0.1, 0.3, 0.5, 0.7, 0.9], *beta_quantiles(alpha))
    assert np.abs(found - wanted).max() < 0.005


def test_values_that_cannot_work_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"data\.augment\.mixup=-0\.1"):
        Mix(0, -0.1, 0.0)
    with pytest.raises(UsageError, match=r"data\.augment\.cutmix=inf"):
        Mix(0, 0.0, float("inf"))
    with pytest.raises(UsageError, match=r"train\.micro_batch_size=3 is odd"):
        Mix(0, 0.1, 0.0).check(3)
