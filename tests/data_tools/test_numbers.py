"""Labels that are numbers to predict, not classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from pictures import write_pictures

from data_tools import __main__ as cli
from data_tools.augment.transforms import EvalTransform
from data_tools.batches.mixture import Mixture, WeightedShards
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, EvalStream, Share
from data_tools.errors import DataError, UsageError
from data_tools.packing.csv_table import CsvOptions
from data_tools.packing.pack import pack
from data_tools.shards.index import build_index
from data_tools.shards.label_meaning import Kind, LabelError, Meaning
from data_tools.shards.labels import LabelRules, parse_json
from data_tools.shards.shard_set import ShardSet
from data_tools.verify import verify

NUMBERS = LabelRules(numbers=True)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    write_pictures(tmp_path / "pictures", 6, seed=0)
    return sorted((tmp_path / "pictures").rglob("*.png"))


def write(folder: Path, pictures: list[Path], labels: list[object]) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar"), encoder=False) as tar:
        for number, (path, label) in enumerate(zip(pictures, labels, strict=False)):
            content = {"label": label} if label is not None else {}
            data = {"png": path.read_bytes(), "json": json.dumps(content).encode()}
            tar.write({"__key__": f"{number:03}", **data})
    build_index(folder, rules=NUMBERS)
    return folder


def test_numbers_to_predict_may_be_fractions_and_whole_numbers(tmp_path: Path, pictures: list[Path]) -> None:
    folder = write(tmp_path / "set", pictures, [0.73, 2, -1.5, None, 1e-3])
    shards = ShardSet.open(folder)
    assert shards.numeric and shards.num_classes == 1 and not shards.multilabel
    assert [shards.labels_of(i) for i in range(4)] == [(pytest.approx(x),) for x in (0.73, 2, -1.5, 1e-3)]
    found = list(verify(folder, decode_images=False, max_pixels=10**6, threads=1))
    assert [problem.key for problem in found] == ["003"]
    stream = EvalStream(shards, EvalTransform(16, 1), Share(4), Decoding(10**6, 16))
    (batch,) = stream
    assert batch.labels.dtype == torch.float32
    torch.testing.assert_close(batch.labels, torch.tensor([[0.73], [2], [-1.5], [1e-3]]))


def test_several_numbers_of_a_sample_keep_their_order_and_sources_may_be_mixed(
    tmp_path: Path, pictures: list[Path]
) -> None:
    labels = [[0.5, 0.5, 3], [1, 2, -4.25], [0.0, 1.0, 2.0]]
    shards = ShardSet.open(write(tmp_path / "set", pictures, labels))
    assert shards.num_classes == 3
    mixture = Mixture([WeightedShards(shards, 1.0), WeightedShards(shards, 1.0)], Order(0, 6, 2))
    assert mixture.numeric
    assert [mixture.label_row(i).tolist() for i in range(6)] == 2 * labels
    assert np.load(tmp_path / "set/shardindex.numbers.npy").dtype == np.float32


def test_samples_with_different_counts_of_numbers_are_refused(tmp_path: Path, pictures: list[Path]) -> None:
    with pytest.raises(DataError, match="2 numbers as its label where others have 1"):
        write(tmp_path / "set", pictures, [0.5, [0.5, 1.5]])


@pytest.mark.parametrize("text", ["NaN", "[0.5, Infinity]", "[0.5, true]", "1e39", "[[0.5]]"])
def test_what_is_no_number_is_refused(text: str) -> None:
    meaning = Meaning(Kind.number, "")
    with pytest.raises(LabelError, match="label"):
        meaning.resolve(parse_json(f'{{"label": {text}}}'.encode())["label"])


def test_numbers_of_a_csv_are_packed_and_packed_again(tmp_path: Path, pictures: list[Path], capsys) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pictures:
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    names = sorted(path.name for path in flat.iterdir())
    wanted = {name: (float(n), -0.5 * n) for n, name in enumerate(names)}
    rows = [f"{name},{int(a)}|{b}" for name, (a, b) in wanted.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    table = CsvOptions(tmp_path / "labels.csv", separator="|")
    with pytest.raises(UsageError, match=r"labels such as .* give --numbers"):
        pack(flat, tmp_path / "packed", csv=table)
    pack(flat, tmp_path / "packed", csv=table, rules=NUMBERS)
    pack(tmp_path / "packed", tmp_path / "again", seed=1)
    for folder in ("packed", "again"):
        capsys.readouterr()
        assert cli.main(["verify", str(tmp_path / folder)]) == 0
        assert f"{len(wanted)} samples, 2 numbers to predict, 1 shard" in capsys.readouterr().out
        shards = ShardSet.open(tmp_path / folder)
        assert shards.classes == []
        assert sorted(shards.labels_of(i) for i in range(len(shards))) == sorted(wanted.values())
