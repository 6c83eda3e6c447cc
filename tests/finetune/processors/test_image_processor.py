"""ImageProcessor against transformers' own, whose numbers tests/references/record_processors.py wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from references.record_processors import picture

from data_tools.errors import UserError
from finetune import ImageProcessor

REFERENCES = Path(__file__).parents[2] / "references"
OURS: dict[str, dict[str, Any]] = {
    "hybrid": {"size": {"shortest_edge": 8}, "crop_size": 8},
    "vit": {"size": {"height": 8, "width": 8}, "image_processor_type": "ViTImageProcessor"},
}
FILE = "preprocessor_config.json"


def recorded() -> list[Any]:
    found = []
    for kind in OURS:
        with np.load(REFERENCES / f"arrays/processor_{kind}.npz", allow_pickle=False) as data:
            for place, case in enumerate(json.loads(str(data["cases"]))):
                found.append(pytest.param(kind, case, data[str(place)], id=f"{kind}-{place}"))
    return found


@pytest.mark.parametrize(("kind", "case", "theirs"), recorded())
def test_numbers_are_those_of_transformers(kind: str, case: dict[str, Any], theirs: np.ndarray) -> None:
    image = picture(case["image"])
    image = image.astype(np.float32) / 255 if "share" in case else image
    given = image if "share" in case else Image.fromarray(image)
    (ours,) = ImageProcessor(**OURS[kind])(given, **case["call"]).pixel_values
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    # One 8-bit step, of the pixel, of [0, 1] or of what was divided by the smallest deviation.
    raw = not case["call"].get("do_rescale", True) and "share" not in case
    spread = 1.0 if not case["call"].get("do_normalize", True) else 0.25
    step = (1 if raw else max(1 / 255, case["call"].get("rescale_factor", 0))) / spread
    np.testing.assert_allclose(ours, theirs, atol=step * 1.0001, rtol=1e-5)


def test_all_ways_to_give_images_are_one(tmp_path: Path) -> None:
    image, processor = picture(3), ImageProcessor(size=8, crop_size=8)
    first = image.transpose(2, 0, 1)
    batch = np.stack([image, image])
    wanted = processor(Image.fromarray(image)).pixel_values[0]
    for given, count in (
        (image, 1),
        (torch.from_numpy(first.copy()), 1),
        ([image, Image.fromarray(image)], 2),
        (batch, 2),
        (torch.from_numpy(batch), 2),
        ([[image], [image, image]], 3),
    ):
        found = processor(given, return_tensors="np")
        assert found["pixel_values"].shape == (count, 3, 8, 8)
        assert all(np.array_equal(one, wanted) for one in found.pixel_values)
    assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], torch.from_numpy(wanted))
    assert isinstance(processor.preprocess(image).pixel_values, list)
    narrow = np.zeros((3, 9, 3), np.uint8)
    assert processor(narrow, input_data_format="channels_last").pixel_values[0].shape == (3, 8, 8)


def test_grey_and_other_channels_need_their_mean_and_place() -> None:
    processor = ImageProcessor(size=8, crop_size=8)
    grey = ImageProcessor(size=8, crop_size=8, image_mean=0.5, image_std=[0.5])
    assert grey(np.zeros((20, 30, 1), np.uint8)).pixel_values[0].shape == (1, 8, 8)
    four = grey(
        np.zeros((20, 30, 4), np.uint8), input_data_format="channels_last", data_format="channels_last"
    )
    assert four.pixel_values[0].shape == (8, 8, 4)
    assert processor(Image.new("L", (20, 30))).pixel_values[0].shape == (3, 8, 8)


def test_a_crop_larger_than_the_image_is_filled_before_it_is_normalised() -> None:
    processor = ImageProcessor(do_resize=False, crop_size=8, image_mean=0.5, image_std=0.5)
    found = processor(np.full((4, 5, 3), 255, np.uint8)).pixel_values[0]
    assert found.shape == (3, 8, 8)
    assert found[:, 2:6, 2:7].min() == 1 and (found == -1).sum() == 3 * (64 - 20)


@pytest.mark.parametrize("kind", OURS)
def test_a_file_gives_the_same_processor_again(kind: str, tmp_path: Path) -> None:
    first = ImageProcessor(**OURS[kind], resample=1, image_mean=[0.1, 0.2, 0.3])
    first.save_pretrained(tmp_path / "model")
    again = ImageProcessor.from_pretrained(tmp_path / "model")
    assert again.to_dict() == first.to_dict() == json.loads((tmp_path / "model" / FILE).read_text())
    assert again.resample == 1 and again.image_mean == [0.1, 0.2, 0.3]


def test_what_a_file_leaves_out_is_the_default_of_its_class(tmp_path: Path) -> None:
    for kind, resample, crops in (("ViT", 2, False), ("ViTHybrid", 3, True), ("CLIP", 3, True)):
        (tmp_path / FILE).write_text(json.dumps({"image_processor_type": f"{kind}ImageProcessor"}))
        found = ImageProcessor.from_pretrained(tmp_path)
        assert (found.resample, found.do_center_crop) == (resample, crops)
    (tmp_path / FILE).write_text(json.dumps({"feature_extractor_type": "ViTFeatureExtractor", "size": 16}))
    assert ImageProcessor.from_pretrained(tmp_path).size == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"resample": 6}, "resample must be 0 to 5"),
        ({"size": {"longest_edge": 8}}, "size must be a number"),
        ({"size": -1}, "size must be whole numbers above 0"),
        ({"crop_size": {"shortest_edge": 8}}, "crop_size must be"),
        ({"image_std": 0}, "image_std"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers, but the image has 3"),
        ({"return_tensors": "tf"}, "return_tensors must be None, 'np' or 'pt'"),
        ({"data_format": "first"}, "data_format must be"),
        ({"input_data_format": "none"}, "input_data_format must be"),
    ],
)
def test_wrong_values_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageProcessor(size=8)(np.zeros((20, 30, 3), np.uint8), **arguments)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((8, 8)), "3 dimensions"),
        (np.zeros((1, 2, 8, 8, 3)), "3 dimensions"),
        (np.zeros((8, 9, 5)), "give input_data_format"),
        ("cat.png", "not str"),
        (np.full((8, 8, 3), -1.5), "cannot be resized"),
        (np.full((8, 8, 3), 300), "cannot be resized"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageProcessor(size=8)(image)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(TypeError, match="no argument 'do_rescal'; it has do_resize"):
        ImageProcessor()(np.zeros((8, 8, 3), np.uint8), do_rescal=False)
    with pytest.raises(ValueError, match="different sizes"):
        ImageProcessor(do_resize=False, do_center_crop=False)([picture(0), picture(1)], return_tensors="np")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "damaged"),
        ('{"do_pad": true}', "it asks for do_pad"),
        ('{"size": "large"}', "size must be"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_named(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        ImageProcessor.from_pretrained(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
