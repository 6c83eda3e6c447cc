from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_images import write_images
from hostile_shards import write_shards
from sample_files import picture, write_tar

from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and shards/ that are damaged, lying or odd."""
    folder = tmp_path_factory.mktemp("hostile")
    write_images(folder / "images")
    write_shards(folder / "shards")
    return folder


@pytest.fixture(scope="session")
def hostile_reference(tmp_path_factory: pytest.TempPathFactory, shared: Callable[[str], Path]) -> Path:
    """The same of the reference data, made by others."""
    folder = tmp_path_factory.mktemp("hostile-reference")
    with zipfile.ZipFile(shared("data/hostile.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def make_shards(tmp_path: Path):
    """Shards of `sizes` samples with labels number mod 5; the samples in `bad` are cut short."""

    def make(sizes: list[int], bad: frozenset[int] = frozenset(), name: str = "shards") -> ShardSet:
        folder = tmp_path / name
        folder.mkdir()
        number = 0
        for shard, size in enumerate(sizes):
            members = []
            for _ in range(size):
                data = picture(number, 32 + number % 5 * 9, 64 - number % 7 * 5)
                data = data[: len(data) // 2] if number in bad else data
                members += [
                    (f"{number:05d}.jpg", data),
                    (f"{number:05d}.cls", b"%d" % (number % 5)),
                ]
                number += 1
            write_tar(folder / f"part-{shard:03d}.tar", members)
        (folder / "classes.json").write_text(json.dumps(list("abcde")))
        build_index(folder)
        return ShardSet.open(folder)

    return make


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """23 images in three classes, with awkward names and with files that are no images."""
    folder = tmp_path / "images"
    names = [
        "ant/1.jpg",
        "ant/a.b.c.JPEG",
        "ant/with space.png",
        "bee/1.jpg",
        "bee/naïve 日本.webp",
    ]
    names += ["Zebra/deep/er/1.jpg", "Zebra/quote'and,comma.jpg"]
    names += [f"bee/n{i}.jpg" for i in range(16)]
    kinds = {"png": "PNG", "webp": "WEBP"}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, kind=kinds.get(name.rpartition(".")[2], "JPEG")))
    (folder / "ant" / ".hidden.jpg").write_bytes(b"no")
    (folder / "ant" / "Thumbs.db").write_bytes(b"no")
    return folder
