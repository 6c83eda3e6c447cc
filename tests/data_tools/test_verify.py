"""What `verify --ranks` says; the rest of verify is tested with pack and the hostile shards."""

from __future__ import annotations

import json

import numpy as np

from data_tools import __main__ as cli


def test_ranks_are_balanced_whatever_the_shards(make_shards, capsys) -> None:
    folder = str(make_shards([30, 1, 9]).folder)
    assert cli.main(["verify", folder, "--ranks", "8", "--workers", "2"]) == 0
    sentence = capsys.readouterr().out.splitlines()[0]
    assert sentence.startswith("balanced: 5.0 samples a rank and epoch on 8 ranks")
    assert "would need 16 of them" in sentence and "any multiple of 8 up to 40" in sentence
    assert cli.main(["verify", folder, "--ranks", "41"]) == 3
    assert capsys.readouterr().out.startswith("not balanced: 40 samples for 41 ranks")


def test_tables_that_do_not_fit_the_shards_are_named(make_shards, capsys) -> None:
    shards = make_shards([5, 5])
    table = np.load(shards.folder / "shardindex.offsets.npy")
    table["label"][3] += 1
    np.save(shards.folder / "shardindex.offsets.npy", table)
    assert cli.main(["verify", str(shards.folder), "--decode"]) == 3
    assert capsys.readouterr().out.startswith("shardindex.offsets.npy: does not fit the shards")


def test_a_missing_shard_and_an_unreadable_one_are_counted(make_shards, capsys) -> None:
    folder = make_shards([5, 5, 5]).folder
    (folder / "part-000.tar").unlink()
    (folder / "part-002.tar").write_bytes(bytes(100))
    assert cli.main(["verify", str(folder)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "part-000.tar: the shard is missing, but shardindex.json lists it"
    assert lines[1].startswith("part-002.tar: 100 bytes, but") and lines[-1].endswith("2 bad")
    assert len(json.loads((folder / "shardindex.json").read_text())["shardlist"]) == 3
