from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_files import photo

from data_tools.augment.transforms import TrainTransform
from data_tools.bench import STAGES, Recipe, bench, distance_from_pillow, read_recipe
from data_tools.errors import UsageError
from pretrain.config.schema import AugmentConfig, DataConfig


def test_json_has_every_stage_and_the_total(make_shards, capsys, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {tile_size: 16, max_tiles: 4, augment: {flip: true, randaugment_ops: 1, mixup: 0.2}}"
    )
    shards = make_shards([20])
    bench(str(shards.folder), images=100, threads=2, config=str(recipe), as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 128 and set(result["stages"]) == set(STAGES)
    for row in (*result["stages"].values(), result["total"]):
        assert row["images_per_s"] > 0 and row["cpu_ms_per_image"] >= 0
    assert sum(row["share"] for row in result["stages"].values()) == pytest.approx(1, abs=0.02)
    parts = sum(row["cpu_ms_per_image"] for row in result["stages"].values())
    assert parts == pytest.approx(result["total"]["cpu_ms_per_image"], rel=0.02)
    bench(str(shards.folder), images=64, threads=1, config=None, as_json=False)
    text = capsys.readouterr().out
    assert all(name in text for name in (*STAGES, "total", "grey levels"))


def test_a_recipe_without_a_key_has_the_defaults_of_training(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: vit_b16}")
    recipe, data, augment = read_recipe(str(path)), DataConfig(), AugmentConfig()
    for field in fields(Recipe):
        wanted = getattr(augment if hasattr(augment, field.name) else data, field.name)
        assert getattr(recipe, field.name) == wanted, field.name
    assert {field.name for field in fields(AugmentConfig)} <= {field.name for field in fields(Recipe)}


@pytest.mark.parametrize("text", ["data: {tile_size: big}", "- 1", "data: [", "data: 3"])
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        read_recipe(str(path))
    with pytest.raises(UsageError, match=r"absent\.yaml: no such recipe"):
        read_recipe(str(tmp_path / "absent.yaml"))


def distances(files: Iterable[bytes], max_tiles: int) -> list[float | None]:
    transform = TrainTransform(0, 224, max_tiles, AugmentConfig(crop_scale=(0.08, 1.0)))
    return [distance_from_pillow(data, transform, position) for position, data in enumerate(files)]


@pytest.mark.parametrize("max_tiles", [1, 4])
def test_crops_are_within_a_fifth_of_a_grey_level_of_pillow(max_tiles: int) -> None:
    sizes = [(375, 500), (500, 333), (120, 411), (600, 800), (98, 130), (320, 685)]
    found = distances((photo(number, *size) for number, size in enumerate(sizes)), max_tiles)
    assert len(found) == 6 and np.mean(found) < 0.2 and max(found) < 1


@pytest.mark.parametrize("max_tiles", [1, 4])
def test_crops_of_photos_are_within_a_fifth_of_a_grey_level_of_pillow(shared, max_tiles: int) -> None:
    with zipfile.ZipFile(shared("data/photos/photos.zip")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")]
        found = distances((archive.read(name) for name in names[::10]), max_tiles)
    assert len(found) == 46 and np.mean(found) < 0.2 and max(found) < 1


def test_the_distance_is_that_of_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (100, 100, 100)).save(buffer, "JPEG")
    transform = TrainTransform(0, 32, 1, AugmentConfig())
    assert distance_from_pillow(buffer.getvalue(), transform, 0) == 0
    monkeypatch.setattr(
        "data_tools.bench.fit", lambda *arguments: (np.full((3, 32, 32), 103, np.uint8), 1, 1)
    )
    assert distance_from_pillow(buffer.getvalue(), transform, 0) == 3
