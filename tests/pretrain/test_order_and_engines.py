"""One order of images and one loss curve, whatever the number of processes, threads and engine."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from jobs import Data, losses, metrics, succeed, trace, write_recipe

RUNS = {
    "one process": ("engine.kind=ddp", "data.workers=0", 0),
    "fsdp alone": ("engine.kind=fsdp", "data.workers=4", 0),
    "ddp x 2": ("engine.kind=ddp", "data.workers=1", 2),
    "fsdp x 2": ("engine.kind=fsdp", "data.workers=4", 2),
    "fsdp x 4": ("engine.kind=fsdp", "data.workers=2", 4),
    "zero-2 x 2": ("engine.kind=deepspeed", "train.micro_batch_size=3", 2),
    "zero-3 alone": ("engine.kind=deepspeed", "engine.zero_stage=3", 0),
}


@pytest.fixture(scope="module")
def folders(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of each of RUNS: 50 steps of the same recipe."""
    root = tmp_path_factory.mktemp("engines")
    recipe = write_recipe(root, data)
    for name, (*settings, processes) in RUNS.items():
        folder = name.replace(" ", "_")
        succeed(
            "pretrain",
            recipe,
            f"run.dir={root}",
            f"run.name={folder}",
            "checkpoint.every=50",
            *settings,
            processes=processes,
        )
    return {name: root / name.replace(" ", "_") for name in RUNS}


@pytest.mark.parametrize("name", list(RUNS)[1:])
def test_keys_and_pixels_of_50_batches_are_the_same(folders: dict[str, Path], name: str) -> None:
    wanted = trace(folders["one process"])
    assert list(wanted) == list(range(1, 51))
    assert all(len(images) == 12 for images in wanted.values())
    assert trace(folders[name]) == wanted


def test_an_epoch_delivers_every_sample_once(folders: dict[str, Path]) -> None:
    images = [image for batch in trace(folders["fsdp x 2"]).values() for image in batch]
    keys = [key for _, key, _ in sorted(images)]
    assert len(set(keys[:97])) == 97
    assert set(keys[97:194]) == set(keys[:97])
    assert keys[97:194] != keys[:97]


@pytest.mark.parametrize("name", list(RUNS)[1:])
def test_losses_of_10_steps_agree(folders: dict[str, Path], name: str) -> None:
    wanted, found = losses(folders["one process"]), losses(folders[name])
    for step in range(1, 11):
        assert found[step] == pytest.approx(wanted[step], abs=1e-6), f"step {step}"


def test_shards_of_7_3_11_1_and_5_images_on_three_processes_train_and_end(data: Data, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    pictures = sorted((data.images.parent / "train").rglob("*.png"))
    for number, size in enumerate((7, 3, 11, 1, 5)):
        with tarfile.open(shards / f"{number}.tar", "w") as tar:
            for key in range(size):
                tar.add(pictures.pop(), f"{key}.png")
                label = tarfile.TarInfo(f"{key}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"%d" % (key % 3)))
    succeed("data_tools", "index", shards)
    recipe = write_recipe(tmp_path, Data(shards, shards, data.images))
    succeed("pretrain", recipe, f"run.dir={tmp_path}", "train.steps=0", "train.epochs=2", processes=3)
    assert max(losses(tmp_path / "tiny")) == 5  # 2 x 27 images in batches of 12, rounded up
    assert metrics(tmp_path / "tiny")[-1]["n"] == 27
