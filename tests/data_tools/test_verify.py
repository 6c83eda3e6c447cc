"""What `verify` says, with an index and without; the rest is tested with pack and the hostile shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sample_files import picture, write_tar

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


def without_index(folder: Path) -> Path:
    for path in folder.glob("shardindex*"):
        path.unlink()
    return folder


@pytest.mark.parametrize("pattern", ["", "/part-{000..002}.tar", "/part-*.tar"])
def test_shards_without_an_index_are_verified(make_shards, capsys, pattern: str) -> None:
    folder = without_index(make_shards([5, 5, 5], bad=frozenset({7})).folder)
    assert cli.main(["verify", f"{folder}{pattern}", "--ranks", "3"]) == 0
    said = capsys.readouterr()
    assert (
        said.out.startswith("balanced: 5.0 samples") and "15 samples, 5 classes, 3 shards, 0 bad" in said.out
    )
    assert said.err.startswith("note: not compared with an index: ") and "data_tools index" in said.err
    assert cli.main(["verify", f"{folder}{pattern}", "--decode"]) == 3
    assert capsys.readouterr().out.splitlines()[0].startswith("part-001.tar:00007: ")
    (folder / "part-002.tar").write_bytes((folder / "part-002.tar").read_bytes()[:3000])
    (folder / "part-000.tar").write_bytes(b"")
    assert cli.main(["verify", f"{folder}{pattern}"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "part-000.tar is empty" in lines[0] and "part-002.tar is cut short" in lines[1]
    assert lines[2] == "5 samples, 3 shards, 2 bad"


def test_shards_beyond_the_index_are_verified_too(make_shards, capsys) -> None:
    folder = make_shards([5, 5]).folder
    write_tar(folder / "part-002.tar", [("x.jpg", picture(1)), ("x.cls", b"9")])
    assert cli.main(["verify", f"{folder}/part-*.tar"]) == 3
    said = capsys.readouterr()
    assert "part-002.tar" in said.out and "label 9, but classes.json has 5 classes" in said.out


def test_a_folder_that_holds_nothing_to_verify_is_a_usage_error(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", tmp_path / "none"):
        assert cli.main(["verify", str(given)]) == 2
        assert capsys.readouterr().err.startswith("error: ")


ODD = "a\x1b[31mred\nline\u202egnp\x07"


def test_names_with_control_characters_are_escaped(make_shards, tmp_path: Path, capsys) -> None:
    """In what is printed of shards and of keys, by every command, with an index and without."""
    folder = tmp_path / "odd"
    folder.mkdir()
    members = [("ok.jpg", picture(1)), ("ok.cls", b"1"), (f"{ODD}.jpg", picture(2)), (f"{ODD}.cls", b"-3")]
    write_tar(folder / f"{ODD}.tar", members)
    assert cli.main(["verify", str(folder)]) == 3
    assert cli.main(["index", str(folder)]) == 3
    assert cli.main(["index", str(folder), "--allow-unlabelled"]) == 0
    assert cli.main(["verify", str(folder)]) == 3
    assert cli.main(["pack", str(folder), str(tmp_path / "out")]) == 0
    write_tar(folder / f"new{ODD}.tar", members)
    assert cli.main(["preview", str(folder), str(tmp_path / "x.png")]) == 0
    (folder / f"{ODD}.tar").write_bytes(b"x" * 700)
    assert cli.main(["verify", str(folder)]) == 3
    assert cli.main(["preview", str(folder), str(tmp_path / "x.png")]) == 3
    (folder / f"{ODD}.tar").unlink()
    assert cli.main(["preview", str(folder), str(tmp_path / "x.png")]) == 3
    assert cli.main(["verify", str(folder / f"{ODD}.tar")]) == 2
    said = "".join(capsys.readouterr())
    assert r"a\x1b[31mred\nline\u202egnp\x07" in said
    assert all(line.isprintable() for line in said.split("\n"))
    assert not any(line.startswith("line") for line in said.split("\n"))


def test_names_of_packed_images_are_escaped(tmp_path: Path, capsys) -> None:
    for name in (f"{ODD}.jpg", "b.jpg", f"{ODD}.txt"):
        path = tmp_path / "images" / f"class {ODD}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(1) if name.endswith("b.jpg") else picture(2)[:300])
    out = str(tmp_path / "out")
    assert cli.main(["pack", str(tmp_path / "images"), out, "--quality", "80"]) == 0
    assert cli.main(["verify", out, "--decode"]) == 3
    assert cli.main(["pack", str(tmp_path / f"none{ODD}"), out]) == 2
    said = "".join(capsys.readouterr())
    assert r"\u202egnp" in said and all(line.isprintable() for line in said.split("\n"))
