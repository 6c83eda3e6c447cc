"""Names of classes: one form of Unicode, names that are no Unicode, and the classes of another set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from jobs import ROOT
from sample_files import originals, picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import DataError, UsageError
from data_tools.packing.pack import pack
from data_tools.shards.class_names import plain_name
from data_tools.shards.labels import LabelRules
from data_tools.shards.shard_set import ShardSet


def write(folder: Path, *classes: str | bytes) -> Path:
    """A folder of two images for each class."""
    for number, name in enumerate(classes):
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
        os.makedirs(path)
        for n in range(2):
            with open(os.path.join(path, b"%d.jpg" % n), "wb") as file:
                file.write(picture(2 * number + n))
    return folder


def classes(folder: Path) -> list[str]:
    return json.loads((folder / "classes.json").read_bytes())


def test_names_in_two_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    for name, form in (("train", composed), ("val", decomposed)):
        pack(write(tmp_path / f"{name}-images", form, "tea"), tmp_path / name)
    assert ShardSet.open(tmp_path / "train").classes == ShardSet.open(tmp_path / "val").classes
    (both,) = pack(write(tmp_path / "both-images", composed, decomposed), tmp_path / "both")
    assert both.classes == 1 and both.images == 4 and "two forms of Unicode" in both.labels
    (tmp_path / "val/classes.json").write_text(
        json.dumps([decomposed, "tea"])
    )  # as earlier versions wrote it
    assert ShardSet.open(tmp_path / "train").classes == ShardSet.open(tmp_path / "val").classes


def test_a_name_that_is_no_utf8_is_shown_escaped_in_every_file(tmp_path: Path) -> None:
    source = write(tmp_path / "images", b"caf\xe9", "tea")
    (packed,) = pack(source, tmp_path / "out")
    assert packed.images == 4 and classes(tmp_path / "out") == ["caf\\xe9", "tea"]
    assert {"caf\\xe9/0.jpg", "caf\\xe9/1.jpg"} <= originals(tmp_path / "out").keys()
    assert plain_name("a\udcff\ud800") == "a\\xff\\ud800"
    (tmp_path / "out/classes.json").write_text('["caf\\udce9", "tea"]')  # as earlier versions wrote it
    assert ShardSet.open(tmp_path / "out").classes == ["caf\\xe9", "tea"]


def test_no_name_ends_a_command_where_the_console_cannot_show_it(tmp_path: Path) -> None:
    source = write(tmp_path / "images", b"caf\xe9", "日本")
    (source / "日本" / "x.txt").write_text("no image")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "data_tools", "pack", str(source), str(tmp_path / "日本-shards")],
        env=os.environ | ascii_only,
        capture_output=True,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert classes(tmp_path / "日本-shards") == ["caf\\xe9", "日本"]


GIVEN = ["ant", "bee", "caf\u00e9", "dog"]


@pytest.mark.parametrize("kind", ["classes.json", "shards", "index", "run"])
def test_a_second_set_gets_the_classes_of_the_first(kind: str, tmp_path: Path, capsys) -> None:
    if kind in ("shards", "index"):
        pack(write(tmp_path / "first-images", *GIVEN), tmp_path / "first")
    else:
        (tmp_path / "first").mkdir()
        (tmp_path / "first/classes.json").write_text(json.dumps(GIVEN))
    given = {"classes.json": "first/classes.json", "index": "first/shardindex.json"}.get(kind, "first")
    source = write(tmp_path / "images", "dog", unicodedata.normalize("NFD", "caf\u00e9"))
    options = ["--classes", str(tmp_path / given)]
    assert cli.main(["pack", str(source), str(tmp_path / "out"), *options]) == 0
    assert classes(tmp_path / "out") == GIVEN and ShardSet.open(tmp_path / "out").num_classes == 4
    labels = {
        unicodedata.normalize("NFC", path): label for path, (_, label) in originals(tmp_path / "out").items()
    }
    assert labels == {"dog/0.jpg": 3, "dog/1.jpg": 3, "café/0.jpg": 2, "café/1.jpg": 2}
    capsys.readouterr()
    write(source, "eel")
    assert cli.main(["pack", str(source), str(tmp_path / "more"), *options]) == 3
    said = capsys.readouterr().err
    assert "'eel/0.jpg': 'eel' is no class" in said and not (tmp_path / "more").exists()
    assert cli.main(["pack", str(source), str(tmp_path / "more"), *options, "--allow-unlabelled"]) == 0
    assert capsys.readouterr().err.count("left out 'eel/") == 2 and len(ShardSet.open(tmp_path / "more")) == 4


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("indexed", [True, False])
def test_shards_get_the_classes_of_another_set_by_name_or_else_by_number(
    named: bool, indexed: bool, tmp_path: Path, capsys
) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    members = [
        (f"{n}.{kind}", data) for n in range(3) for kind, data in (("jpg", picture(n)), ("cls", b"%d" % n))
    ]
    write_tar(source / "x.tar", members)
    if named:
        (source / "classes.json").write_text('["dog", "ant", "bee"]')
    if indexed:
        assert cli.main(["index", str(source)]) == 0
    pack(source, tmp_path / "out", rules=LabelRules(classes=tuple(GIVEN)), shuffle=False)
    assert ShardSet.open(tmp_path / "out").labels(range(3)).tolist() == ([3, 0, 1] if named else [0, 1, 2])
    assert classes(tmp_path / "out") == GIVEN
    with pytest.raises(DataError, match=r"x\.tar.*2.*(no class|has 2 classes)"):
        pack(source, tmp_path / "never", rules=LabelRules(classes=("dog", "ant")))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_number_that_could_mean_two_of_the_classes_is_refused(indexed: bool, tmp_path: Path) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    write_tar(source / "x.tar", [("a.jpg", picture(1)), ("a.cls", b"1")])
    if indexed:
        assert cli.main(["index", str(source)]) == 0
    with pytest.raises(UsageError, match="class 0 of --classes is called '1'"):
        pack(source, tmp_path / "out", rules=LabelRules(classes=("1", "2", "3")))
    pack(source, tmp_path / "out", rules=LabelRules(classes=("0", "1", "2")))


def test_classes_that_cannot_be_used_are_refused(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "images", "dog")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "wrong.json").write_text('{"dog": 0}')
    for given, code in (("nowhere", 2), ("empty.json", 2), ("wrong.json", 3), ("images", 2), ("0", 2)):
        given = given if given == "0" else str(tmp_path / given)
        assert cli.main(["pack", str(source), str(tmp_path / "out"), "--classes", given]) == code
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UsageError, match="--numbers is for labels"):
        pack(source, tmp_path / "out", rules=LabelRules(numbers=True))
    with pytest.raises(UsageError, match="--label-key is for shards"):
        pack(source, tmp_path / "out", rules=LabelRules(key="breed"))
