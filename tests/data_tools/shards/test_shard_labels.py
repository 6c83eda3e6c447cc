"""Labels of shards that others made: text, other keys, lists of 0 and 1, and labels that are no class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sample_files import picture, write_tar

from data_tools import __main__ as cli
from data_tools.shards.label_survey import Survey
from data_tools.shards.labels import NO_RULES, parse_cls
from data_tools.shards.shard_set import ShardSet


def write(folder: Path, labels: list, extension: str = "json") -> Path:
    """One shard of a sample for each label."""
    folder.mkdir(exist_ok=True)
    members = []
    for n, label in enumerate(labels):
        data = json.dumps(label) if extension == "json" else str(label)
        members += [(f"{n:02}.jpg", picture(n)), (f"{n:02}.{extension}", data.encode())]
    write_tar(folder / "a.tar", members)
    return folder


def found(folder: Path) -> tuple[list[str] | None, list[tuple]]:
    shards = ShardSet.open(folder)
    return shards.classes, [shards.labels_of(i) for i in range(len(shards))]


CASES: dict[str, tuple[list, str, list[str], list[str] | None, list[tuple]]] = {
    "text in cls": (["cat", "dog", "cat"], "cls", [], ["cat", "dog"], [(0,), (1,), (0,)]),
    "text in json": ([{"label": "b"}, {"label": ["a", "b"]}], "json", [], ["a", "b"], [(1,), (0, 1)]),
    "numbers as text": ([{"label": "2"}, {"label": "0"}], "json", [], None, [(2,), (0,)]),
    "another key": ([{"class_id": 3, "w": 5}, {"class_id": 0}], "json", [], None, [(3,), (0,)]),
    "a key that is told": ([{"breed": "b"}, {"breed": "a"}], "json", ["breed"], ["a", "b"], [(1,), (0,)]),
    "one of two keys": (
        [{"class_id": 7, "class_name": "b"}, {"class_id": 9, "class_name": "a"}],
        *("json", ["class_name"], ["a", "b"], [(1,), (0,)]),
    ),
    "txt": (["dog", "cat\n", "dog"], "txt", ["txt"], ["cat", "dog"], [(1,), (0,), (1,)]),
    "one-hot": ([{"label": [0, 0, 1]}, {"label": [1, 0, 0]}], "json", [], ["0", "1", "2"], [(2,), (0,)]),
    "one-hot of fractions": (
        [{"label": [0.0, 1.0]}, {"label": [1.0, 0.0]}],
        "json",
        [],
        ["0", "1"],
        [(1,), (0,)],
    ),
    "many-hot": ([{"label": [0, 1, 1]}, {"label": [0, 0, 0]}], "json", [], ["0", "1", "2"], [(1, 2), ()]),
    "lists in cls": (["[0, 1]", "(2,)", "[0. 1]"], "cls", [], None, [(0, 1), (2,), (0, 1)]),
    "lists of names in cls": (["['b', 'a']", "b"], "cls", [], ["a", "b"], [(1, 0), (1,)]),
    "one-hot by numpy": (["[0. 0. 1.]", "[1. 0. 0.]"], "cls", [], ["0", "1", "2"], [(2,), (0,)]),
    "one-hot of true": (
        [{"label": [True, False]}, {"label": [False, True]}],
        "json",
        [],
        ["0", "1"],
        [(0,), (1,)],
    ),
    "true and false": ([{"label": True}, {"label": False}], "json", [], ["false", "true"], [(1,), (0,)]),
    "a mark of UTF-8": (["\ufeffdog", "cat", "dog"], "cls", [], ["cat", "dog"], [(1,), (0,), (1,)]),
    "a key in other case": ([{"Label": 1}, {"LABEL": 0}], "json", [], None, [(1,), (0,)]),
    "a json that is the label": (["dog", "cat"], "json", [], ["cat", "dog"], [(1,), (0,)]),
    "a key below another": ([{"a": {"id": 1}}, {"a": {"id": 0}}], "json", ["a.id"], None, [(1,), (0,)]),
    "lists of classes": ([{"label": [0, 1]}, {"label": [2]}], "json", [], None, [(0, 1), (2,)]),
}


@pytest.mark.parametrize("case", CASES)
def test_labels_of_others_are_indexed_verified_and_packed_alike(case: str, tmp_path: Path, capsys) -> None:
    labels, extension, key, classes, numbers = CASES[case]
    folder = write(tmp_path / "shards", labels, extension)
    options = ["--label-key", *key] if key else []
    assert cli.main(["pack", str(folder), str(tmp_path / "out"), "--no-shuffle", *options]) == 0
    assert cli.main(["index", str(folder), *options]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labels: ")]
    assert len(said) == 2 and said[0] == said[1]
    assert found(folder) == (classes, numbers)
    names = classes or [str(label) for label in range(1 + max(max(label, default=0) for label in numbers))]
    assert found(tmp_path / "out") == (names, numbers)
    for name in (folder, tmp_path / "out"):
        assert cli.main(["verify", str(name)]) == 0
    assert cli.main(["index", str(folder), *options]) == 0  # once more, beside the classes.json of before
    assert found(folder) == (classes, numbers)


def test_a_set_without_labels_is_said_and_an_unclear_one_refused(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path / "shards", ["a caption", "another"], "txt")
    assert cli.main(["index", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "KEY.txt" in said and "--label-key" in said and "no labels, and 0 classes" in said
    assert cli.main(["index", str(folder), "--label-key", "cls"]) == 2
    assert "other members are txt" in capsys.readouterr().err
    write(folder, [{"class_id": 3, "class_name": "b"}, {"class_id": 0, "class_name": "a"}])
    assert cli.main(["index", str(folder)]) == 2
    assert "class_id and class_name" in capsys.readouterr().err


@pytest.mark.parametrize("extension", ["cls", "json"])
@pytest.mark.parametrize("odd", [1000, -1, 0.5, "cat", 10**12, True, {"id": 2}, "", "0 1", "0,5", "a\x07b"])
def test_a_label_that_is_no_class_is_an_error_or_a_list(
    odd: object, extension: str, tmp_path: Path, capsys
) -> None:
    labels = [0, 1, 2, 3, odd, 1]
    wrapped = labels if extension == "cls" else [{"label": label} for label in labels]
    folder = write(tmp_path / "shards", wrapped, extension)
    for command in (["index", str(folder)], ["pack", str(folder), str(tmp_path / "out")]):
        assert cli.main(command) == 3
        said = capsys.readouterr().err
        assert (
            re.search("a.tar:04: (the )?label ", said)
            and "--allow-unlabelled" in said
            and said.count("\n") == 1
        )
        assert not (folder / "shardindex.json").exists()
        assert cli.main([*command, "--allow-unlabelled"]) == 0
        assert "left out a.tar:04: " in capsys.readouterr().err
        shards = ShardSet.open(command[-1])
        assert len(shards) == 5 and shards.num_classes == 4
        (folder / "shardindex.json").unlink(missing_ok=True)
    (folder / "classes.json").write_text(json.dumps(list("abcd")))
    assert cli.main(["index", str(folder)]) == 3
    assert "a.tar:04: " in capsys.readouterr().err


@pytest.mark.parametrize("odd", [{"id": 2}, "", "a\nb"])
def test_where_all_labels_are_no_class_the_way_out_is_another_key(
    odd: object, tmp_path: Path, capsys
) -> None:
    folder = write(tmp_path / "shards", [{"label": odd, "right": n} for n in range(3)])
    assert cli.main(["index", str(folder)]) == 3
    said = capsys.readouterr().err
    assert "no label is a class, first " in said and "a.tar:00" in said and "--label-key NAME" in said
    assert cli.main(["index", str(folder), "--label-key", "right"]) == 0


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["00", "01", "1", "0"], "'00' is 0, '01' is 1"),
        (["0.0", "1.0"], "'0.0' is 0, '1.0' is 1"),
        (["Cat", "cat", "dog"], "'Cat' and 'cat' are different classes"),
        (["a b", "a_b", "a  b"], "'a  b' and 'a b' and 'a_b' are different classes"),
        (["cat", "cat\u200b"], "are different classes"),
        (["nan", "cat", "None", "NA"], "taken for classes, too: 'NA', 'None', 'nan'"),
        (["[0, 2]", "[1]"], "images of several classes: 1"),
    ],
)
def test_what_is_unusual_in_labels_is_said(labels: list[str], says: str) -> None:
    survey = Survey()
    for label in labels:
        survey.add(parse_cls(label.encode()), "here")
    assert says in survey.decide(NO_RULES, "").said


def test_so_many_classes_may_be_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", [0, 1, 2, 3, 1000], "cls")
    assert cli.main(["index", str(folder), "--classes", "2000"]) == 0
    assert ShardSet.open(folder).num_classes == 2000


def test_shards_are_numbers_only_when_somebody_says_so(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path / "shards", [{"label": 0.5}, {"label": 2}, {"label": 1.5}])
    assert cli.main(["index", str(folder)]) == 2 and "give --numbers" in capsys.readouterr().err
    assert cli.main(["index", str(folder), "--numbers"]) == 0
    shards = ShardSet.open(folder)
    assert shards.numeric and [shards.labels_of(i) for i in range(3)] == [(0.5,), (2.0,), (1.5,)]
    assert cli.main(["verify", str(folder)]) == 0
    assert cli.main(["pack", str(folder), str(tmp_path / "out")]) == 0  # as its index says
    assert ShardSet.open(tmp_path / "out").numeric


def test_classes_that_index_made_do_not_stay_behind_other_labels(tmp_path: Path) -> None:
    names = [{"class_id": 1, "class_name": "ant"}, {"class_id": 0, "class_name": "bee"}]
    folder = write(tmp_path / "shards", names)
    assert cli.main(["index", str(folder), "--label-key", "class_name"]) == 0
    assert found(folder) == (["ant", "bee"], [(0,), (1,)])
    assert cli.main(["index", str(folder), "--label-key", "class_id"]) == 0
    assert found(folder) == (None, [(1,), (0,)])
    (folder / "classes.json").write_text('["bee", "ant"]')  # written by hand, it stays
    assert cli.main(["index", str(folder), "--label-key", "class_name"]) == 0
    assert found(folder) == (["bee", "ant"], [(1,), (0,)])
