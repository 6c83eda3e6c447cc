"""Names of classes: one form of Unicode, names that are no Unicode, and the classes of another set."""

from __future__ import annotations

import json
import os
import shutil
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


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Cat", "cat", "dog"], "'Cat' and 'cat' are different classes"),
        (["1", "01", "x"], "'01' and '1' are different classes"),
        (["big cat", "big_cat", "Big  cat"], "'Big  cat' and 'big cat' and 'big_cat' are different classes"),
        (["0", "1", "2", "10"], "'10' is label 2"),
    ],
)
def test_folders_that_may_be_taken_for_others_are_said(names: list[str], says: str, tmp_path: Path) -> None:
    (packed,) = pack(write(tmp_path / "images", *names), tmp_path / "out")
    assert packed.classes == len(names) and says in packed.labels


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
    (tmp_path / "wrong.json").write_text('{"dog": 1}')
    for given, code in (("nowhere", 2), ("empty.json", 2), ("wrong.json", 3), ("images", 2), ("0", 2)):
        given = given if given == "0" else str(tmp_path / given)
        assert cli.main(["pack", str(source), str(tmp_path / "out"), "--classes", given]) == code
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UsageError, match="--numbers is for labels"):
        pack(source, tmp_path / "out", rules=LabelRules(numbers=True))
    with pytest.raises(UsageError, match="--label-key is for shards"):
        pack(source, tmp_path / "out", rules=LabelRules(key="breed"))


IMAGENET = {"0": ["n01", "ant"], "1": ["n02", "bee"], "2": ["n03", "crane"], "3": ["n04", "crane"]}
LINES = "n01440764 ant, black ant\nn01443537 bee\nn01484850 caf\u00e9\nn01491361 dog\n"
# A file of classes -> folders that get the labels 1 and 3, and the names that are kept.
CLASS_FILES: dict[str, tuple[object, tuple[str, str], list[str]]] = {
    "list.json": (GIVEN, ("bee", "dog"), GIVEN),
    "id2label.json": ({str(n): GIVEN[n] for n in (2, 0, 3, 1)}, ("bee", "dog"), GIVEN),
    "config.json": (
        {"model_type": "vit", "id2label": dict(zip("0123", GIVEN, strict=True)), "label2id": {}},
        *(("bee", "dog"), GIVEN),
    ),
    "class_to_idx.json": ({name: n for n, name in enumerate(GIVEN)}, ("bee", "dog"), GIVEN),
    "imagenet_class_index.json": (IMAGENET, ("n02", "n04"), ["n01", "n02", "n03", "n04"]),
    "imagenet_names.json": (IMAGENET, ("bee", "ant"), ["ant", "bee", "crane", "crane"]),
    "classes.txt": ("\ufeffant\r\nbee\r\ncaf\u00e9\r\ndog\r\n\r\n", ("bee", "dog"), GIVEN),
    "LOC_synset_mapping.txt": (
        LINES,
        ("n01443537", "n01491361"),
        [line.split()[0] for line in LINES.splitlines()],
    ),
    "words.txt": (LINES, ("bee", "dog"), ["ant, black ant", "bee", "caf\u00e9", "dog"]),
    "numbered.txt": (
        "0 ant\n1 bee\n2 caf\u00e9\n3 black dog\n",
        ("bee", "black dog"),
        [*GIVEN[:3], "black dog"],
    ),
    "spaces.txt": ("black ant\nblack bee\nbig cat\nbig dog\n", ("black bee", "big dog"), None),
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_classes_come_from_the_files_that_others_write(name: str, tmp_path: Path) -> None:
    content, folders, kept = CLASS_FILES[name]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    options = ["--classes", str(tmp_path / name)]
    write(tmp_path / "images", *folders)
    assert cli.main(["pack", str(tmp_path / "images"), str(tmp_path / "out"), *options]) == 0
    packed = {path.split("/")[0]: label for path, (_, label) in originals(tmp_path / "out").items()}
    assert packed == {folders[0]: 1, folders[1]: 0 if name == "imagenet_names.json" else 3}
    assert classes(tmp_path / "out") == (kept or text.splitlines())
    (tmp_path / "shards").mkdir()
    members = [
        (f"{n}.{kind}", data)
        for n, folder in enumerate(folders)
        for kind, data in (("jpg", picture(n)), ("cls", folder.encode()))
    ]
    write_tar(tmp_path / "shards/x.tar", members)
    assert cli.main(["index", str(tmp_path / "shards"), *options]) == 0
    assert ShardSet.open(tmp_path / "shards").labels(range(2)).tolist() == [
        packed[folder] for folder in folders
    ]
    assert classes(tmp_path / "shards") == (kept or text.splitlines())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"0": "a", "2": "b"}', "no class has the number 1"),
        ("x.json", '{"1": "a", "2": "b"}', "no class has the number 0"),
        ("x.json", '{"a": 0, "b": 0}', "'b' and 'a' have the same number, 0"),
        ("x.json", '{"0": "a", "0": "b"}', "key '0' twice"),
        ("x.json", '{"a": 0, "a": 1}', "key 'a' twice"),
        ("x.json", '{"a": 0, "b": "1"}', "key 'a' is no number"),
        ("x.json", '{"00": "a"}', "key '00' is no number"),
        ("x.json", '{"a": true}', "key 'a' is no number"),
        ("x.json", '{"0": ["n01", "a"], "1": ["n02"]}', "class 1 has 1 names"),
        ("x.json", '{"0": ["n01", 3]}', "class 0 has"),
        ("x.json", '["a", ["b"]]', "class 1 has"),
        ("x.json", '["a", 1]', "class 1 has [1] instead of a name"),
        ("x.json", '"a"', "neither a list"),
        ("x.json", "[" * 100000, "does not say"),
        ("config.json", '{"model_type": "vit", "num_labels": 2}', "key 'model_type' is no number"),
        ("x.txt", "a\n\nb\n", "line 2"),
        ("x.txt", "a\nb\tc\x1b[0m\n", "line 2"),
        ("x.txt", "1 001.Ant\n2 002.Bee\n", "count from 1"),
        ("x.csv", "a,b\n1,2\n", "a .txt with a name in each line"),
        ("x.yaml", "names:\n  0: a\n", "a .txt with a name in each line"),
        ("x.txt", "a\n\udce9\n", "byte 0xe9 is not UTF-8"),
        ("x.json", '["\udce9"]', "byte 0xe9 is not UTF-8"),
    ],
)
def test_a_file_of_classes_that_could_mean_two_things_is_refused(
    name: str, text: str, said: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / name).write_text(text, "utf-8", "surrogateescape")
    source = write(tmp_path / "images", "a")
    command = ["pack", str(source), str(tmp_path / "out"), "--classes", str(tmp_path / name)]
    assert cli.main(command) == 3
    error = capsys.readouterr().err
    assert said in error and name in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_folders_with_numbers_in_byte_order_are_told_and_every_way_out_works(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("images"), "0", "1", "2", "10")
    assert cli.main(["pack", "images", "train"]) == 0
    assert "'10' is label 2, as names are in byte order" in capsys.readouterr().err
    assert cli.main(["pack", "images", "numbers", "--classes", "11"]) == 0
    assert {path.split("/")[0]: label for path, (_, label) in originals(Path("numbers")).items()} == {
        name: int(name) for name in ("0", "1", "2", "10")
    }
    assert "byte order" not in capsys.readouterr().err
    write(Path("val-images"), "2", "10")
    assert cli.main(["pack", "val-images", "val", "--classes", "train"]) == 0
    assert set(ShardSet.open("val").labels(range(4)).tolist()) == {2, 3}

    def shards(name: str, *labels: int) -> None:
        Path(name).mkdir()
        members = [("a.jpg", picture(1)), ("a.cls", b"%d" % labels[0]), ("b.jpg", picture(2))]
        write_tar(Path(name) / "x.tar", [*members, ("b.cls", b"%d" % labels[1])])

    shards("places", 2, 3)
    assert cli.main(["index", "places", "--classes", "train"]) == 2
    said = capsys.readouterr().err
    assert "class 2 of --classes is called '10'" in said and "put a classes.json" in said
    shutil.copy("train/classes.json", "places")
    assert cli.main(["index", "places"]) == 0 and classes(Path("places")) == classes(Path("train"))
    assert ShardSet.open("places").labels(range(2)).tolist() == [2, 3]
    shards("names", 2, 10)
    assert "index them with --classes N first" in said
    assert cli.main(["index", "names", "--classes", "11"]) == 0
    assert cli.main(["pack", "names", "named", "--classes", "train", "--no-shuffle"]) == 0
    assert ShardSet.open("named").labels(range(2)).tolist() == [3, 2]
