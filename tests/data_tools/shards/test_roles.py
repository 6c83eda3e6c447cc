"""Shards of train and val in one folder are two sets: refused, with a command that works, unless told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sample_files import picture, write_tar

from data_tools import __main__ as cli
from data_tools.shards.shard_set import ShardSet

# Shards by name -> the beginnings of their keys. The first shards hold the set that the advice takes.
MIXED = {
    "names": {"train-0.tar": "", "train-1.tar": "", "val-0.tar": ""},
    "names without numbers": {"train.tar": "", "val.tar": ""},
    "longer names": {"in1k-train-0-of-2.tar": "", "in1k-train-1-of-2.tar": "", "in1k-validation-00.tar": ""},
    "other words": {"set_test0.tar": "", "set_Eval0.tar": "", "set_unlabeled0.tar": ""},
    "keys with folders": {"0.tar": "train/", "1.tar": "val/"},
    "keys": {"0.tar": "train_", "1.tar": "val_"},
}
ONE_SET = {
    "one role": {"train-0.tar": "", "train-1.tar": ""},
    "none": {"shard-0.tar": "", "a-0.tar": ""},
    "one role and none": {"train-0.tar": "", "more-0.tar": ""},
    "keys of one role": {"0.tar": "train/", "1.tar": "train/x/"},
    "a name that says it, not a key": {"val-0.tar": "", "val-1.tar": "test/"},
    "words inside of others": {"contrain-0.tar": "", "interval-0.tar": "latest_", "detest-0.tar": ""},
}


def write(folder: Path, shards: dict[str, str]) -> Path:
    folder.mkdir()
    for name, start in shards.items():
        members = [
            (f"{start}{n}.{kind}", data)
            for n in range(2)
            for kind, data in (("jpg", picture(n)), ("cls", b"%d" % n))
        ]
        write_tar(folder / name, members)
    return folder


def advised(error: str) -> list[str]:
    found = re.search(r"python -m data_tools (index .*?) \(pack and training take the same\)", error)
    assert found, error
    return shlex.split(found[1])


@pytest.mark.parametrize("kind", MIXED)
def test_shards_of_several_roles_are_refused_with_the_command_for_one(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(Path("S"), MIXED[kind])
    before = sorted(folder.iterdir())
    for command in (["index", "S"], ["index", "S/*.tar"], ["pack", "S", "out"]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert "different sets" in error and "--one-set" in error and "Traceback" not in error
        assert sorted(folder.iterdir()) == before and not Path("out").exists()
    command = advised(error)
    assert cli.main(command) == 0
    taken = ShardSet.open(command[1:])
    assert 0 < taken.num_shards < len(MIXED[kind])
    assert cli.main(["pack", command[1], "out"]) == 0
    assert len(ShardSet.open("out")) == len(taken)
    assert cli.main(["index", "S", "--one-set"]) == 0 and cli.main(["verify", "S"]) == 0
    assert ShardSet.open("S").num_shards == len(MIXED[kind])
    assert cli.main(["pack", "S", "again"]) == 0  # the index says that they are one


@pytest.mark.parametrize("kind", ONE_SET)
def test_shards_of_one_role_or_none_are_one_set(kind, tmp_path) -> None:
    folder = write(tmp_path / "S", ONE_SET[kind])
    assert cli.main(["index", str(folder)]) == 0
    assert ShardSet.open(folder).num_shards == len(ONE_SET[kind])


def test_roles_mixed_within_a_shard_are_taken_apart_as_the_message_says(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("S").mkdir()
    keys = ["train/0", "val_1", "train/2", "val_3"]
    write_tar(Path("S/0.tar"), [(f"{key}.jpg", picture(1)) for key in keys])
    assert cli.main(["index", "S"]) == 2
    error = capsys.readouterr().err
    assert "cp S/0.tar train.tar && tar --delete --wildcards -f train.tar 'val_*'" in error


def test_sets_in_sub_folders_are_named(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("S").mkdir()
    for name in ("train", "val"):
        write(Path("S") / name, {"0.tar": ""})
    assert cli.main(["index", "S"]) == 2 and "did you mean S/train or S/val?" in capsys.readouterr().err
    assert cli.main(["pack", "S", "out"]) == 3 and "pack their folder, S/train" in capsys.readouterr().err
