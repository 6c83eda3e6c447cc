"""Which shards a name, a pattern or a list means, in every command, and what is said where it means none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from sample_files import picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import UserError
from data_tools.shards.index import build_index
from data_tools.shards.indexing import index_shards
from data_tools.shards.labels import LabelRules
from data_tools.shards.names import folders_of, local_shards
from data_tools.shards.shard_set import ShardSet

COUNTS = {"in1k-train": 4, "in1k-validation": 2, "in1k-test": 1}


def write(path: Path, first: int, labelled: bool = True) -> None:
    """A shard of three samples from number `first` on, with labels number mod 4."""
    members = []
    for number in range(first, first + 3):
        members.append((f"{number:05d}.jpg", picture(number)))
        if labelled:
            members.append((f"{number:05d}.cls", b"%d" % (number % 4)))
    write_tar(path, members)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of three splits in one folder, as on the hub; those of the test split have no labels."""
    folder = tmp_path / "hub"
    folder.mkdir()
    first = 0
    for split, count in COUNTS.items():
        for number in range(count):
            write(folder / f"{split}-{number:04d}.tar", first, labelled=split != "in1k-test")
            first += 3
    monkeypatch.chdir(tmp_path)
    return folder


TRAIN = [
    "hub/in1k-train-{0000..0003}.tar",
    "hub/in1k-train-*.tar",
    "hub/in1k-train-000[0-3].tar",
    "hub/in1k-train-000{0,1}.tar::hub/in1k-train-000{2..3}.tar",
    ["hub/in1k-train-000{0,1}.tar", "hub/in1k-train-000[23].tar"],
    [f"hub/in1k-train-{n:04d}.tar" for n in (2, 0, 1, 3)],
]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("train", TRAIN, ids=str)
def test_every_spelling_of_a_set_finds_its_index(hub: Path, train: str | list[str], absolute: bool) -> None:
    if absolute:
        here = str(hub.parent) + "/"
        train = (
            [here + one for one in train] if isinstance(train, list) else train.replace("hub/", here + "hub/")
        )
    index_shards(TRAIN[0:1], None)
    index_shards(["hub/in1k-validation-*.tar"], None)
    shards = ShardSet.open(train)
    assert [shards.key(i) for i in range(len(shards))] == [f"{n:05d}" for n in range(12)]
    assert shards.read(7) == picture(7) and shards.label(7) == 3
    assert [ShardSet.open("hub/in1k-validation-{0000..0001}.tar").key(i) for i in (0, 5)] == [
        "00012",
        "00017",
    ]


def test_an_index_of_more_shards_serves_for_some_of_them(hub: Path, tmp_path: Path) -> None:
    for name in ("labels", "several", "numbers"):
        folder = tmp_path / name
        folder.mkdir()
        for shard in range(3):
            members = []
            for number in range(shard * 3, shard * 3 + 3):
                several = [number, number + 1][: 1 + number % 2]
                label = {"labels": number, "several": several, "numbers": number / 2}[name]
                members += [
                    (f"{number}.jpg", picture(number)),
                    (f"{number}.json", json.dumps({"label": label}).encode()),
                ]
            write_tar(folder / f"s-{shard}.tar", members)
        build_index(folder, rules=LabelRules(numbers=name == "numbers"))
        whole, part = ShardSet.open(folder), ShardSet.open(f"{folder}/s-{{2,0}}.tar")
        ids = [0, 1, 2, 6, 7, 8]
        assert [part.labels_of(i) for i in range(6)] == [whole.labels_of(i) for i in ids]
        assert [part.read(i) for i in range(6)] == [whole.read(i) for i in ids]
        assert [part.key(i) for i in range(6)] == [str(i) for i in ids] and part.num_shards == 2
        alone = tmp_path / f"{name}-alone"
        shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("shardindex*", "s-1.tar"))
        build_index(alone, rules=LabelRules(numbers=name == "numbers"))
        if part.num_classes == ShardSet.open(alone).num_classes:
            assert part.index_sha256 == ShardSet.open(alone).index_sha256  # as if only these had been indexed


def test_all_shards_of_a_folder_are_its_usual_index(hub: Path) -> None:
    for path in hub.glob("*-test-*"):
        path.unlink()
    _, place = index_shards(["hub/*.tar"], None, LabelRules(one_set=True))
    assert place == Path("hub") and (hub / "shardindex.json").is_file()
    assert ShardSet.open(hub).index_sha256 == ShardSet.open("hub/in1k-*.tar").index_sha256
    write(hub / "new-0.tar", 90)
    assert len(ShardSet.open("hub/in1k-{train,validation}-*.tar")) == 18


def test_shards_of_several_folders_are_one_set(hub: Path) -> None:
    for name in ("a", "b"):
        (hub / name).mkdir()
        write(hub / name / "x.tar", 60 if name == "a" else 63)
    index_shards(["hub/a/x.tar", "hub/b/x.tar"], None)
    shards = ShardSet.open("hub/{a,b}/*.tar")
    assert [shards.key(i) for i in range(6)] == [f"{n:05d}" for n in range(60, 66)]
    assert shards.shard_name(3) == "b/x.tar"


def test_every_command_takes_patterns_and_lists(hub: Path, capsys) -> None:
    names = [f"hub/in1k-train-{n:04d}.tar" for n in range(4)]
    for given in (["hub/in1k-train-{0000..0003}.tar"], ["hub/in1k-train-*.tar"], names):
        for command in ("index", "verify", "bench", "preview"):
            more = {"bench": ["--images", "1"], "preview": ["x.png"], "verify": ["--decode"]}.get(command, [])
            assert cli.main([command, *given, *more]) == 0, capsys.readouterr().err
        assert "12 samples, 4 classes, 4 shards, 0 bad" in capsys.readouterr().out


WRONG = {
    "nowhere": "nowhere does not exist",
    "nowhere/shardindex.json": "nowhere/shardindex.json does not exist",
    "nowhere/x.tar": "nowhere does not exist",
    "hub/none.tar": "hub/none.tar does not exist",
    "hub/none-*.tar": "hub/none-*.tar matches no file",
    "hub/{in1k-train,none}-*.tar": "hub/none-*.tar",
    "hub/in1k-train-{0000..0008}.tar": "5 of the 9 names of hub/in1k-train-{0000..0008}.tar do not exist",
    "hub/in1k-train-{0000..0008.tar": "its braces do not close",
    "nowhere/x-{0..3}.tar": "nowhere does not exist",
    "hub/readme.txt": "hub/readme.txt",
    "hub/*": "is not a .tar",
    "hub/{in1k-train-0000,in1k-train-*}.tar": "hub/in1k-train-0000.tar is given twice",
}


@pytest.mark.parametrize("command", ["index", "verify", "preview", "bench", "pack"])
@pytest.mark.parametrize("given", WRONG)
def test_what_does_not_exist_is_told_as_such(hub: Path, given: str, command: str, capsys) -> None:
    if command == "pack" and given != "nowhere":
        return
    (hub / "readme.txt").write_text("x")
    more = {"preview": ["x.png"], "pack": ["out"]}.get(command, [])
    assert cli.main([command, given, *more]) == 2
    said = capsys.readouterr().err
    assert WRONG[given] in said and said.count("\n") == 1


def test_a_list_says_what_it_cannot_hold(hub: Path) -> None:
    for given, reason in (
        ([], "An empty list"),
        (["hub", "hub/in1k-train-0000.tar"], "hub is a folder: .* mixture"),
        (["hub/in1k-train-0000.tar", "http://host/x.tar"], "http://host/x.tar is a URL among local shards"),
        (["http://host/x.tar", "http://host/y.tar"], "--out DIR"),
        (["hub/in1k-train-0000.tar"] * 2, "is given twice"),
        (["hub/in1k-train-*.tar", "hub/../hub/in1k-train-0002.tar"], r"0002\.tar is given twice"),
    ):
        with pytest.raises(UserError, match=reason):
            ShardSet.open(given)


def test_without_an_index_the_command_that_makes_it_is_said(hub: Path) -> None:
    for given in ("hub/in1k-train-*.tar", ["hub/in1k-train-{0..1}.tar".replace("0..1", "0000..0001")]):
        with pytest.raises(
            UserError, match=r"no index of these .* shards: run python -m data_tools index 'hub/"
        ):
            ShardSet.open(given)


@pytest.mark.parametrize(
    "name",
    ["c:part.tar", "2024-01-01T10:00:00.tar", "a b.tar", "x{1}.tar", "x[1].tar", "naïve?.tar", "a\nb.tar"],
)
def test_what_index_writes_open_opens(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 0)
    build_index(tmp_path)
    assert ShardSet.open(tmp_path).read(1) == picture(1)
    assert ShardSet.open(tmp_path / name).shard_name(0) == name


def test_a_name_that_is_no_text_is_opened_and_shown(tmp_path: Path, capsys) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.tar"
    write(Path(os.fsdecode(path)), 0)
    assert cli.main(["index", str(tmp_path)]) == 0
    assert ShardSet.open(tmp_path).read(1) == picture(1)
    with open(path, "ab") as file:
        file.write(b"x")
    assert cli.main(["verify", str(tmp_path)]) == 3
    assert r"caf\udce9.tar" in capsys.readouterr().out.encode("utf-8").decode()


def test_a_name_that_would_be_a_command_is_not_indexed(tmp_path: Path, capsys) -> None:
    write(tmp_path / "pipe:x.tar", 0)
    assert cli.main(["index", str(tmp_path)]) == 3
    assert "rename it" in capsys.readouterr().err and not (tmp_path / "shardindex.json").exists()


def test_the_folders_of_shards_are_known_before_anything_is_opened(hub: Path) -> None:
    found = folders_of(
        ["hub/in1k-{train,validation}-*.tar", "data/*/x.tar", "http://host/x.tar", "x/shardindex.json"]
    )
    assert found == [Path("hub"), Path("data"), Path("x")]
    assert folders_of("hub") == [Path("hub")] and folders_of("hub/in1k-test-0000.tar") == [Path("hub")]
    assert local_shards("hub") is None and local_shards("http://host/{0..3}.tar") is None
