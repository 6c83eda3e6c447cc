from __future__ import annotations

import numpy as np
import pytest

from data_tools.augment.transforms import EvalTransform, TrainTransform, crop_box
from data_tools.errors import UsageError
from data_tools.images.decode import Decoded
from data_tools.random_numbers import uniform
from pretrain.config.schema import AugmentConfig

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
CROP = AugmentConfig(crop_scale=(0.3, 1.0), flip=True)


@pytest.mark.parametrize("max_tiles", [1, 4])
def test_the_same_position_gives_the_same_pixels_and_others_do_not(max_tiles: int) -> None:
    one, two = (TrainTransform(3, 32, max_tiles, CROP) for _ in range(2))
    for position in (0, 5, 10**12):
        assert np.array_equal(one(IMAGE, position)[0], two(IMAGE, position)[0])
    assert len({one(IMAGE, position)[0].tobytes() for position in range(20)}) == 20
    other_seed = TrainTransform(4, 32, max_tiles, CROP)
    assert one(IMAGE, 0)[0].tobytes() != other_seed(IMAGE, 0)[0].tobytes()


def test_without_augmentation_the_whole_image_is_resized_or_tiled() -> None:
    single = TrainTransform(0, 30, 1, AugmentConfig())
    assert [single(IMAGE, p)[0].shape for p in (0, 1)] == [(1, 3, 30, 30)] * 2
    assert np.array_equal(single(IMAGE, 0)[0], single(IMAGE, 1)[0])
    tiles, rows, columns = TrainTransform(0, 30, 6, AugmentConfig())(IMAGE, 0)
    assert (rows, columns) == (2, 3)
    joined = tiles.reshape(2, 3, 3, 30, 30).transpose(0, 3, 1, 4, 2).reshape(60, 90, 3)
    assert np.array_equal(joined, IMAGE)


def test_erasing_puts_one_box_of_noise_into_the_share_of_images_asked_for() -> None:
    image = np.full((100, 100, 3), 7, np.uint8)
    transform = TrainTransform(0, 100, 1, AugmentConfig(erase=0.25))
    erased = 0
    for position in range(400):
        tile = transform(image, position)[0][0]
        assert np.array_equal(tile, transform(image, position)[0][0])
        changed = (tile != 7).any(axis=0)
        if not changed.any():
            continue
        erased += 1
        ys, xs = np.nonzero(changed)
        high, wide = np.ptp(ys) + 1, np.ptp(xs) + 1
        assert 0.015 < high * wide / 10_000 < 0.42 and 0.25 < high / wide < 4
        noise = tile[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert changed.sum() > 0.99 * high * wide and 110 < noise.mean() < 145
    assert 70 < erased < 130
    assert (image == 7).all()


def test_only_the_crop_is_decoded() -> None:
    asked = []

    class Counting(Decoded):
        def region(self, top: int, left: int, height: int, width: int) -> np.ndarray:
            asked.append(height * width)
            return super().region(top, left, height, width)

    transform = TrainTransform(3, 32, 1, CROP)
    for position in range(20):
        assert np.array_equal(transform(Counting(IMAGE), position)[0], transform(IMAGE, position)[0])
    assert len(asked) == 20 and np.mean(asked) < 0.8 * 60 * 90


def test_half_of_the_images_are_mirrored() -> None:
    transform = TrainTransform(0, 60, 1, AugmentConfig(flip=True))
    square = IMAGE[:, :60]
    upright = transform(square, 0)[0].tobytes(), square.transpose(2, 0, 1).tobytes()
    mirrored = np.ascontiguousarray(square[:, ::-1]).transpose(2, 0, 1).tobytes()
    found = [transform(square, p)[0].tobytes() for p in range(200)]
    assert set(found) == {upright[1], mirrored}
    assert 70 < found.count(mirrored) < 130


def test_crops_have_the_area_and_ratio_asked_for() -> None:
    boxes = []
    for position in range(300):
        draws = uniform(0, position, np.arange(40))
        top, left, high, wide = crop_box(300, 400, (0.1, 0.5), (0.5, 2.0), draws)
        assert 0 <= top <= 300 - high and 0 <= left <= 400 - wide
        boxes.append((high * wide / 120_000, wide / high))
    areas, ratios = np.array(boxes).T
    assert 0.09 < areas.min() < 0.13 and 0.47 < areas.max() < 0.51
    assert 0.48 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.1


def test_where_no_crop_fits_the_largest_central_one_is_taken() -> None:
    draws = uniform(0, 0, np.arange(40))
    assert crop_box(10, 1000, (1.0, 1.0), (0.5, 2.0), draws) == (0, 490, 10, 20)


def test_evaluation_resizes_the_short_side_and_crops_the_centre() -> None:
    tiles, rows, columns = EvalTransform(60, 1)(IMAGE, 0)
    assert (rows, columns) == (1, 1)
    assert np.array_equal(tiles[0], IMAGE[:, 15:75].transpose(2, 0, 1))
    tiles, _, _ = EvalTransform(20, 1, eval_resize=60)(IMAGE, 0)
    assert np.array_equal(tiles[0], IMAGE[20:40, 35:55].transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (15, 15), (2000, 16)])
@pytest.mark.parametrize("max_tiles", [1, 4])
def test_extreme_shapes_become_tiles(shape: tuple[int, int], max_tiles: int) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    for transform in (TrainTransform(0, 32, max_tiles, CROP), EvalTransform(32, max_tiles)):
        tiles, rows, columns = transform(image, 0)
        assert tiles.shape == (rows * columns, 3, 32, 32) and tiles.max() == 200


def test_values_that_cannot_work_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"data\.augment\.crop_scale"):
        TrainTransform(0, 32, 1, AugmentConfig(crop_scale=(0.5, 1.5)))
    with pytest.raises(UsageError, match=r"data\.augment\.crop_ratio"):
        TrainTransform(0, 32, 1, AugmentConfig(crop_ratio=(2.0, 0.5)))
    with pytest.raises(UsageError, match=r"data\.augment\.erase=1\.5"):
        TrainTransform(0, 32, 1, AugmentConfig(erase=1.5))
    with pytest.raises(UsageError, match=r"data\.eval_resize=16"):
        EvalTransform(32, 1, 16)
    with pytest.raises(UsageError, match=r"data\.max_tiles"):
        EvalTransform(32, 0)
