from __future__ import annotations

import json
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sample_files import picture, write_tar

from data_tools.errors import DataError, UsageError
from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_others_are_indexed_and_read(tmp_path: Path, kind: int) -> None:
    long = "folder.v1/" * 8 + "x" * 90
    names = ["a/0001", "b/0001", "naïve 日本", long]
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.JPG", picture(number)), (f"{name}.cls", b"%d\n" % (3 - number))]
    write_tar(tmp_path / "x.tar", members, kind)
    summary = build_index(tmp_path)
    assert (summary.samples, summary.shards, summary.problems) == (4, 1, ())
    shards = ShardSet.open(tmp_path)
    assert [shards.key(i) for i in range(4)] == names
    assert [shards.read(i) for i in range(4)] == [picture(n) for n in range(4)]
    assert shards.labels([3, 0]).tolist() == [0, 3] and shards.label(1) == 2
    assert shards.shard_name(2) == "x.tar" and shards.classes is None and shards.num_classes == 4


def test_the_index_is_valid_for_wids(make_shards) -> None:
    shards = make_shards([3, 2])
    index = json.loads((shards.folder / "shardindex.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["wids_version"] == 1
    assert [entry["url"] for entry in index["shardlist"]] == ["part-000.tar", "part-001.tar"]
    assert [entry["nsamples"] for entry in index["shardlist"]] == [3, 2]
    for entry in index["shardlist"]:
        assert entry["filesize"] == (shards.folder / entry["url"]).stat().st_size
        assert re.fullmatch("[0-9a-f]{64}", entry["sha256"])


def test_indexing_again_gives_the_same_bytes_and_other_shards_another_sha256(make_shards) -> None:
    shards = make_shards([3, 2])
    build_index(shards.folder)
    assert ShardSet.open(shards.folder).index_sha256 == shards.index_sha256
    assert ShardSet.open(shards.folder / "shardindex.json").index_sha256 == shards.index_sha256
    shutil.copy(shards.folder / "part-001.tar", shards.folder / "part-002.tar")
    build_index(shards.folder)
    assert ShardSet.open(shards.folder).index_sha256 != shards.index_sha256


def test_threads_read_the_same_bytes(make_shards) -> None:
    shards = make_shards([20, 20])
    wanted = [shards.read(i) for i in range(40)]
    samples = list(np.random.default_rng(0).integers(0, 40, 2000))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read, samples)) == [wanted[i] for i in samples]


def test_an_unlabelled_set_is_read_and_one_label_makes_the_others_problems(tmp_path: Path) -> None:
    members = [(f"{n}.png", picture(n, kind="PNG")) for n in range(3)]
    write_tar(tmp_path / "x.tar", [*members, ("0.json", b'{"caption": "x"}')])
    build_index(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert shards.labels(range(3)).tolist() == [-1, -1, -1] and shards.num_classes == 0
    assert shards.labels_of(0) == () and not shards.multilabel
    write_tar(tmp_path / "x.tar", [*members, ("0.json", b'{"label": 3}')])
    problems = build_index(tmp_path).problems
    assert [(p.key, p.reason[:8]) for p in problems] == [("1", "no label"), ("2", "no label")]


def test_what_cannot_be_opened_says_what_to_do(make_shards, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist: .*data_tools pack"):
        ShardSet.open(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match=r"holds no shards: .*data_tools pack"):
        ShardSet.open(tmp_path / "void")
    with pytest.raises(UsageError, match=r"'pipe:cat x.tar' is refused"):
        ShardSet.open("pipe:cat x.tar")
    folder = make_shards([2, 2]).folder
    index = (folder / "shardindex.json").read_text()
    for url, reason in (
        ("pipe:cat part-000.tar", "refused"),
        ("ftp://host/part-000.tar", "refused"),
        ("pipe://cat", "refused"),
        ("../part-000.tar", "only URLs and plain names"),
        ("/part-000.tar", "only URLs and plain names"),
        ("part\\u0000.tar", "only URLs and plain names"),
        ("c:part-000.tar", "only URLs and plain names"),
    ):
        (folder / "shardindex.json").write_text(index.replace("part-000.tar", url))
        with pytest.raises(UsageError, match=reason):
            ShardSet.open(folder)
    (folder / "shardindex.json").write_text(re.sub('"version": "[^"]*"', '"version": 7', index))
    with pytest.raises(UsageError, match=r"not an index of data_tools \(version 7\)"):
        ShardSet.open(folder)
    (folder / "shardindex.json").write_text("{}")
    with pytest.raises(UsageError, match="not an index of data_tools"):
        ShardSet.open(folder)
    (folder / "shardindex.json").unlink()
    with pytest.raises(UsageError, match=r"has shards but no shardindex\.json: .*data_tools index"):
        ShardSet.open(folder)


def test_missing_and_changed_shards_are_named(make_shards) -> None:
    folder = make_shards([2, 2]).folder
    with open(folder / "part-001.tar", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"part-001\.tar: .* bytes, but"):
        ShardSet.open(folder)
    (folder / "part-000.tar").unlink()
    with pytest.raises(DataError, match=r"part-000\.tar: the shard is missing"):
        ShardSet.open(folder)


def test_a_missing_or_foreign_table_is_named(make_shards) -> None:
    folder = make_shards([2]).folder
    np.save(folder / "shardindex.offsets.npy", np.zeros(2))
    with pytest.raises(DataError, match=r"offsets\.npy does not fit"):
        ShardSet.open(folder)
    (folder / "shardindex.offsets.npy").unlink()
    with pytest.raises(DataError, match=r"offsets\.npy is missing"):
        ShardSet.open(folder)


def test_fewer_class_names_than_the_index_knows_are_refused(make_shards) -> None:
    folder = make_shards([6]).folder
    (folder / "classes.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match=r"classes\.json has 2 names, but there are 5 classes"):
        ShardSet.open(folder)
