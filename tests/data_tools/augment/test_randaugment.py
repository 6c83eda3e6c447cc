from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_tools.augment.randaugment import RandAugment
from data_tools.augment.transforms import TrainTransform
from data_tools.errors import UsageError
from pretrain.config.schema import AugmentConfig

IMAGE = np.random.default_rng(0).integers(0, 255, (3, 48, 56), dtype=np.uint8)


def images_of(ops: int, magnitude: int, positions: int = 300) -> dict[bytes, int]:
    """What comes out at the positions, and how often."""
    counts: dict[bytes, int] = {}
    augment = RandAugment(1, ops, magnitude)
    for position in range(positions):
        found = augment(IMAGE, position)
        assert found.shape == IMAGE.shape and found.dtype == np.uint8
        counts[found.tobytes()] = counts.get(found.tobytes(), 0) + 1
    return counts


def test_the_same_position_gives_the_same_pixels_and_others_do_not() -> None:
    one, two, other = RandAugment(3, 2, 10), RandAugment(3, 2, 10), RandAugment(4, 2, 10)
    for position in (0, 7, 10**12):
        assert np.array_equal(one(IMAGE, position), two(IMAGE, position))
    assert any(not np.array_equal(one(IMAGE, p), other(IMAGE, p)) for p in range(5))
    assert len(images_of(2, 10)) > 100


def test_every_operation_and_both_directions_are_drawn() -> None:
    # 14 operations, 5 of them (rotate, shear, translate) in two directions; solarize changes nothing at 10.
    counts = images_of(1, 10, 2000)
    picture = Image.fromarray(IMAGE.transpose(1, 2, 0))
    for known in (
        picture,
        ImageOps.invert(picture),
        ImageOps.equalize(picture),
        ImageOps.posterize(picture, 4),
    ):
        share = counts[np.asarray(known).transpose(2, 0, 1).tobytes()] / 2000
        assert 0.04 < share < 0.18, share
    assert 17 <= len(counts) <= 19


def test_strength_is_on_the_scale_of_big_vision() -> None:
    def shifted(magnitude: int) -> set[int]:
        """By how many columns a picture of one bright column was moved."""
        bright = np.zeros((3, 224, 224), np.uint8)
        bright[:, :, 112] = 255
        moves = set()
        for position in range(300):
            found = RandAugment(0, 1, magnitude)(bright, position)
            columns = np.flatnonzero((found[0] == 255).all(axis=0))
            if len(columns) == 1 and columns[0] != 112:
                moves.add(int(columns[0]) - 112)
        return moves

    assert shifted(5) == {-50, 50} and shifted(10) == {-100, 100}


def test_no_operation_turns_an_image_black_at_magnitude_zero() -> None:
    assert all(len(set(image)) > 1 for image in images_of(1, 0))


def test_the_transform_applies_it_to_tiles_before_padding() -> None:
    wide = np.random.default_rng(1).integers(1, 255, (32, 60, 3), dtype=np.uint8)
    transform = TrainTransform(0, 32, 4, AugmentConfig(randaugment_ops=2))
    plain = TrainTransform(0, 32, 4, AugmentConfig())(wide, 0)[0]
    assert not plain[1, :, :, 28:].any()
    for position in range(20):
        tiles, rows, columns = transform(wide, position)
        assert (rows, columns) == (1, 2) and not tiles[1, :, :, 28:].any()


def test_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"randaugment_ops=-1"):
        TrainTransform(0, 32, 1, AugmentConfig(randaugment_ops=-1))
    with pytest.raises(UsageError, match=r"randaugment_magnitude=31"):
        TrainTransform(0, 32, 1, AugmentConfig(randaugment_magnitude=31))
