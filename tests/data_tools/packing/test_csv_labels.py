"""Tables of labels as people have them: what is understood, and what is refused and how."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from sample_files import originals, picture

from data_tools import __main__ as cli
from data_tools.shards.shard_set import ShardSet

LABELS = ["cat", "dog", "cat", "bird", "dog", "bird"]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Six images, of which two lie in a folder and one has an extension in capitals."""
    folder = tmp_path / "flat"
    (folder / "in").mkdir(parents=True)
    for n in range(6):
        (folder / image(n)).write_bytes(picture(n))
    return folder


def image(n: int) -> str:
    return f"in/im{n}.jpg" if n < 2 else f"im{n}.JPG" if n == 5 else f"im{n}.jpg"


def rows(labels: list, name: str = "{}", separator: str = ",") -> str:
    return "".join(f"{name.format(image(n))}{separator}{label}\n" for n, label in enumerate(labels))


def pack(flat: Path, table: str | bytes, *options: str) -> int:
    path = flat.parent / "labels.csv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return cli.main(["pack", str(flat), str(flat.parent / "out"), "--csv", str(path), *options])


def packed(flat: Path) -> tuple[list[str], dict[str, object]]:
    out = flat.parent / "out"
    return json.loads((out / "classes.json").read_bytes()), {
        path: label for path, (_, label) in originals(out).items()
    }


HEAD = "file,label\n"
FORMS: dict[str, tuple[str | bytes, list[str]]] = {
    "semicolons and other names": ("image_id;breed\n" + rows(LABELS, separator=";"), []),
    "tabs": ("filename\tclass\n" + rows(LABELS, separator="\t"), []),
    "bars": ("path|category\n" + rows(LABELS, separator="|"), []),
    "spaces, no header": (rows(LABELS, separator=" "), []),
    "no header": (rows(LABELS), []),
    "Excel's line": ("sep=;\nfile;label\n" + rows(LABELS, separator=";"), []),
    "capitals": ("File,Label\n" + rows(LABELS), []),
    "blanks": ("file, label\n" + rows(LABELS, separator=", "), []),
    "lines of an old Mac": ((HEAD + rows(LABELS)).replace("\n", "\r"), []),
    "empty rows": (HEAD + "\n" + rows(LABELS) + ",\n\n", []),
    "UTF-8 with a mark": ((HEAD + rows(LABELS)).encode("utf-8-sig"), []),
    "UTF-16": ((HEAD + rows(LABELS)).encode("utf-16"), []),
    "UTF-16 without a mark": ((HEAD + rows(LABELS)).encode("utf-16-be"), []),
    "backslashes": (HEAD + rows(LABELS, ".\\{}").replace("/", "\\"), []),
    "other case": ((HEAD + rows(LABELS)).replace(".jpg", ".JPEG").replace(".JPEG", ".JpG"), []),
    "no extension": ((HEAD + rows(LABELS)).replace(".jpg", "").replace(".JPG", ""), []),
    "without the folder": ((HEAD + rows(LABELS)).replace("in/", ""), []),
    "only one of several sets": (
        "file,label,data set\n"
        + rows([f"{label},train" for label in LABELS])
        + rows([f"{label},valid" for label in LABELS[::-1]]),
        ["--where", "data set=train"],
    ),
    "beside the table": (HEAD + rows(LABELS, "flat/{}"), []),
    "absolute": (HEAD + rows(LABELS, "SOURCE/{}"), []),
    "absolute on another machine": (HEAD + rows(LABELS, "/kaggle/input/x/{}"), []),
    "absolute on Windows": (HEAD + rows(LABELS, "C:/me/{}").replace("/", "\\"), []),
    "numbers as names of columns": ("0,1\n" + rows(LABELS), []),
    "UTF-32": ((HEAD + rows(LABELS)).encode("utf-32"), []),
    "rows without an image": (HEAD + "no.jpg,cat\n" + rows(LABELS) + "no.png,dog\n", ["--allow-missing"]),
    "told by name": (
        "id,age,race\n" + rows([f"1,{label}" for label in LABELS]),
        ["--columns", "file=id,label=race"],
    ),
    "told by number": (
        rows([f"1,{label}" for label in LABELS]),
        ["--columns", "file=1,label=3"],
    ),
    "two names of columns, one of which names images": (
        "image,path,label\n" + "".join(f"9{n},{image(n)},{label}\n" for n, label in enumerate(LABELS)),
        [],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_understood_in_the_forms_that_tables_come_in(form: str, flat: Path, capsys) -> None:
    table, options = FORMS[form]
    if isinstance(table, str):
        table = table.replace("SOURCE", str(flat))
    assert pack(flat, table, *options) == 0
    classes, labels = packed(flat)
    assert classes == ["bird", "cat", "dog"]
    assert labels == {image(n): classes.index(label) for n, label in enumerate(LABELS)}
    said = capsys.readouterr().err
    assert said.startswith("labels: ") and "class names in byte order: 3 classes" in said.splitlines()[0]


@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_labels_that_are_names_of_images_too_are_labels(separator: str, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for n in range(4):
        (flat / f"{n}.jpg").write_bytes(picture(n))
    assert pack(flat, "".join(f"{n}.jpg{separator}{n // 2}\n" for n in range(4))) == 0
    assert packed(flat) == (["0", "1"], {f"{n}.jpg": n // 2 for n in range(4)})


@pytest.mark.parametrize(
    ("table", "options", "code", "says"),
    [
        ("id,age,race\nim2,1,x\n", [], 2, "'id', 'age', 'race'"),
        ("a;b;c\n1;2;3\n", [], 2, "'a', 'b', 'c'"),
        ("file\nim2.jpg\n", [], 2, "which has 'file'"),
        ("file,label_a,class\nim2.jpg,1,2\n", ["--columns", "label=race"], 2, "'file', 'label_a', 'class'"),
        (
            "file,label\nim2.jpg,caf\xe9\n".encode("latin-1"),
            [],
            3,
            "labels.csv:2: this is not a csv in UTF-8",
        ),
        ('file,label\nim2.jpg,"cat\nim3.jpg,dog\n', [], 3, "check its quotes"),
        ("im9.jpg,cat\nim2.jpg,dog\nim3.jpg,dog\n", [], 3, "labels.csv:1: "),
        ("file,label\nim2.jpg,cat\nIM2.jpg,dog\n", [], 3, "'im2.jpg' is listed twice"),
        ("file,label\nim2.jpg,cat\nim2.jpg,dog\n", [], 3, "several labels stand in it with --label-sep"),
        ("file,set\nim2.jpg,train\nim3.jpg,test\n", [], 2, "train, test as labels, which are names of sets"),
        (
            "file,label\nim2.jpg,a\n",
            ["--where", "split=train"],
            2,
            "no column 'split'; it has 'file', 'label'",
        ),
        ("file,label,fold\nim2.jpg,a,1\n", ["--where", "fold=2"], 2, "no '2' in its column 'fold', but '1'"),
        ("file,a,b\nim2.jpg,1,0\nim3.jpg,-1,1\n", [], 2, "all of these hold 0 or 1"),
        (
            "file,a,b\n" + "im2.jpg,1,0\n" * 60 + "im3.jpg,,1\n",
            [],
            3,
            "labels.csv:62: '' in the column of a class",
        ),
        (HEAD + "im2.jpg,a\nno.jpg,b\nx/no,c\n", [], 3, "labels.csv:3: "),
        (HEAD + "im2.jpg,a\nno.jpg,b\nx/no,c\n", [], 3, "--allow-missing leaves out the 2 of 3 rows"),
        (HEAD + "no.jpg,a\n", ["--allow-missing"], 3, "has no image 'no.jpg'"),
        (gzip.compress((HEAD + rows(LABELS)).encode(), mtime=0), [], 3, "is another kind of file, not a csv"),
        ('{"file_name": "im2.jpg", "label": 0}\n', [], 3, "is another kind of file, not a csv"),
        ("file,label\nim2.jpg,\n", [], 3, "the label is empty"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_in_one_sentence(
    table: str | bytes, options: list[str], code: int, says: str, flat: Path, capsys
) -> None:
    assert pack(flat, table, *options) == code
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (flat.parent / "out").exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("split", ["train", "val"]),
        ("data set", ["train", "valid"]),
        ("kind", ["training", "testing"]),
        ("fold", ["0", "1"]),
        ("is_valid", ["False", "True"]),
        ("Usage", ["Training", "PublicTest"]),
    ],
)
@pytest.mark.parametrize("by_class", [False, True])
def test_rows_of_several_sets_are_refused_with_the_command_that_takes_one(
    name: str, values: list[str], by_class: bool, flat: Path, capsys
) -> None:
    labels = ["1,0", "0,1"] if by_class else ["cat", "dog"]
    head = "file,cat,dog" if by_class else "file,label"
    table = f"{head},{name}\n" + rows([f"{labels[n % 2]},{values[n // 3]}" for n in range(6)])
    assert pack(flat, table) == 2
    said = capsys.readouterr().err
    assert f"its column {name!r} says: '{values[0]}' (3), '{values[1]}' (3)" in said and said.count("\n") == 1
    where = re.search(r"take one with (--where .*), or all with (--where .*)\.\n", said, re.IGNORECASE)
    assert where and pack(flat, table, *shlex.split(where[1])) == 0
    assert f"with '{values[0]}' in column {name!r}, 3 of 6 rows" in capsys.readouterr().err
    assert packed(flat) == (["cat", "dog"], {image(0): 0, image(1): 1, image(2): 0})
    shutil.rmtree(flat.parent / "out")
    assert pack(flat, table, *shlex.split(where[2])) == 0 and len(packed(flat)[1]) == 6
    shutil.rmtree(flat.parent / "out")
    both = [word for value in values for word in ("--where", f"{name}={value}")]
    assert pack(flat, table, *both) == 0 and len(packed(flat)[1]) == 6


@pytest.mark.parametrize("zero_one", [("0", "1"), ("0.0", "1.0"), ("-1", "1"), ("False", "True")])
def test_columns_of_zeros_and_ones_are_classes(zero_one: tuple[str, str], flat: Path, capsys) -> None:
    table = ",image,MEL,NV,BCC\n"
    hot = [[0], [2], [1], [0, 2], [], [1]]
    for n, places in enumerate(hot):
        cells = ",".join(zero_one[place in places] for place in range(3))
        table += f"{n},{image(n)},{cells}\n"
    assert pack(flat, table) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert "each of 3 others is a class: 'MEL', 'NV', 'BCC'" in said
    assert "images of several classes: 1; images of no class: 1" in said
    classes, labels = packed(flat)
    assert classes == ["MEL", "NV", "BCC"]
    assert labels == {image(n): places for n, places in enumerate(hot)}


def test_a_name_that_two_images_could_have_is_refused(flat: Path, capsys) -> None:
    (flat / "im2.png").write_bytes(picture(9, kind="PNG"))
    assert pack(flat, HEAD + "im2,cat\n") == 3
    assert "'im2' could be 'im2.jpg' or 'im2.png'" in capsys.readouterr().err
    assert pack(flat, HEAD + "im2.png,cat\n") == 0
    (flat / "other").mkdir()
    (flat / "other/im1.jpg").write_bytes(picture(9))
    assert pack(flat, HEAD + "im1.jpg,cat\n") == 3
    said = capsys.readouterr().err
    assert "'im1.jpg' could be 'in/im1.jpg' or 'other/im1.jpg': write which, or pack its folder alone" in said


@pytest.mark.parametrize(
    ("labels", "options", "classes", "numbers", "says"),
    [
        ([0, 1, 2, 0, 1, 4], [], list("01234"), [0, 1, 2, 0, 1, 4], "1 of them without an image"),
        ([1, 2, 3, 1, 2, 3], [], ["1", "2", "3"], [0, 1, 2, 0, 1, 2], "class '1' is label 0"),
        ([10**7, 9, 10**20, 9, 9, 9], [], ["9", f"{10**7}", f"{10**20}"], [1, 0, 2, 0, 0, 0], "3 classes"),
        ([10, 9, 90, 9, 9, 9], [], ["9", "10", "90"], [1, 0, 2, 0, 0, 0], "3 classes"),
        (
            ["001", "01", "1", "1", "2", "2"],
            [],
            ["001", "01", "1", "2"],
            [0, 1, 2, 2, 3, 3],
            "different classes",
        ),
        (
            ["a|b", "a;c", "x", "x", "x", "x"],
            [],
            ["a;c", "a|b", "x"],
            [1, 0, 2, 2, 2, 2],
            "--label-separator",
        ),
        (
            *(['"[0, 1]"', '"[2,0]"', "1", "2", "0", "1"], ["--label-separator", ","], ["0", "1", "2"]),
            *([[0, 1], [2, 0], [1], [2], [0], [1]], "3 classes; images of several classes: 2"),
        ),
        (["a b", "b", "a", "a", "a", "a"], ["--label-separator", " "], ["a", "b"], None, "2 classes"),
        (["café", "cafe\u0301", "x", "x", "x", "x"], [], ["café", "x"], [0, 0, 1, 1, 1, 1], "2 classes"),
        (["a", "a b", "b", "b", "b", "b"], [], ["a", "a b", "b"], None, "' ' is part of the names"),
        (["one", "two", *"abcd"], [], ["a", "b", "c", "d", "one", "two"], None, "a label of its own"),
        ([1, 2, 3, -4, 0.5, 6], ["--numbers"], [], [1.0, 2.0, 3.0, -4.0, 0.5, 6.0], "as --numbers asks"),
    ],
)
def test_what_labels_mean_is_said(
    labels: list, options: list[str], classes: list[str], numbers: list | None, says: str, flat: Path, capsys
) -> None:
    assert pack(flat, HEAD + rows(labels), *options) == 0
    assert says in capsys.readouterr().err.splitlines()[0]
    found, by_path = packed(flat)
    assert found == classes
    assert numbers is None or by_path == {image(n): label for n, label in enumerate(numbers)}


@pytest.mark.parametrize("odd", ["-1", "0.5", "1e2", "+1", "cat", "", "1000", "9" * 30])
def test_one_odd_label_never_changes_what_the_others_mean(odd: str, flat: Path, capsys) -> None:
    table = HEAD + rows([0, 1, 2, odd, 1, 2])
    assert pack(flat, table) == 3
    said = capsys.readouterr().err
    assert "labels.csv:5: 'im3.jpg'" in said and "--allow-unlabelled" in said and said.count("\n") == 1
    assert pack(flat, table, "--allow-unlabelled") == 0
    assert "left out" in capsys.readouterr().err
    classes, labels = packed(flat)
    assert classes == ["0", "1", "2"] and image(3) not in labels and len(labels) == 5


def test_fractions_are_numbers_only_when_somebody_says_so(flat: Path, capsys) -> None:
    table = HEAD + rows([0.5, 1.5, 2, 0.25, -1, 3])
    assert pack(flat, table) == 2 and "give --numbers" in capsys.readouterr().err
    assert pack(flat, table.replace("-1", "x"), "--numbers") == 3
    assert "label 'x' is not a number" in capsys.readouterr().err
    assert pack(flat, table, "--numbers") == 0


@pytest.mark.parametrize(
    ("given", "labels", "numbers"),
    [
        (["a", "bird", "cat", "dog", "e"], LABELS, [2, 3, 2, 1, 3, 1]),
        (["a", "bird", "cat", "dog", "e"], [2, 3, 2, 1, 3, 1], [2, 3, 2, 1, 3, 1]),
        (["0", "1", "2", "3"], [1, 3, 1, 3, 1, 3], [1, 3, 1, 3, 1, 3]),
        (["1", "2", "3"], [1, 3, 1, 3, 1, 3], [0, 2, 0, 2, 0, 2]),
    ],
)
def test_a_table_takes_the_numbers_of_given_classes(
    given: list[str], labels: list, numbers: list[int], flat: Path, capsys
) -> None:
    names = flat.parent / "classes.json"
    names.write_text(json.dumps(given))
    assert pack(flat, HEAD + rows(labels), "--classes", str(names)) == 0
    classes, by_path = packed(flat)
    assert classes == given and by_path == {image(n): label for n, label in enumerate(numbers)}
    capsys.readouterr()
    odd = [*labels[:-1], "zebra"]
    assert pack(flat, HEAD + rows(odd), "--classes", str(names)) == 3
    assert "labels.csv:7: 'im5.JPG': label 'zebra'" in capsys.readouterr().err


def imagefolder(at: Path, kind: str) -> Path:
    """Images of train and test with the tables of Hugging Face's imagefolder; kind: of these."""
    lines: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for number in range(8):
        split, name = ("train", "test")[number % 2], f"{number}.png"
        (at / split).mkdir(parents=True, exist_ok=True)
        (at / split / name).write_bytes(picture(number))
        lines[split].append({"file_name": name, "label": ("cat", "big dog")[number // 4], "boxes": [[1, 2]]})
    for split, rows in lines.items():
        if kind == "metadata.jsonl":
            (at / split / kind).write_text("\n".join(map(json.dumps, rows)) + "\n")
        elif kind == "metadata.csv":
            text = "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
            (at / split / kind).write_text("file_name,label\n" + text)
    if kind == "one for all":
        every = [
            row | {"file_name": f"{split}/{row['file_name']}"} for split in lines for row in lines[split]
        ]
        (at / "metadata.jsonl").write_text("\n".join(map(json.dumps, every)))
    return at


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "one for all"])
def test_an_imagefolder_with_metadata_is_packed_as_the_messages_say(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = imagefolder(Path("D"), kind)
    assert (
        cli.main(["pack", "D", "out"]) == 2 and "python -m data_tools pack D/test" in capsys.readouterr().err
    )
    table = "D/metadata.jsonl" if kind == "one for all" else f"D/test/{kind}"
    assert cli.main(["pack", "D/test", "out"]) == 2
    assert kind == "one for all" or f"(perhaps '{kind}' has them)" in capsys.readouterr().err
    missing = ["--allow-missing"] * (kind == "one for all")
    assert cli.main(["pack", "D/test", "out", "--csv", table, *missing]) == 0
    said = capsys.readouterr().err
    assert json.loads(Path("out/classes.json").read_bytes()) == ["big dog", "cat"]
    assert len(ShardSet.open("out")) == 4
    assert kind != "one for all" or "rows without an image: 4" in said
    if kind == "one for all":
        assert cli.main(["pack", str(source), "both", "--csv", table]) == 2
        said = capsys.readouterr().err
        assert "images of the splits test, train" in said and "pack D/test DST/test --csv" in said
        assert cli.main(["pack", str(source), "both", "--csv", table, "--one-set"]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "1.jpg", "label": 0}\n[]\n', "x.jsonl:2: this is not an object"),
        ('{"file_name": "1.jpg", "label": 0}\n{"a"\n', "x.jsonl:2: this is not an object"),
        ('{"file_name": "1.jpg", "label": 0}\n\n{"file_name": "2.jpg", "label": 1}\n', "x.jsonl:3:"),
        ('{"file_name": "1.jpg", "label": [0, 1]}\n', "which has 'file_name'"),
    ],
)
def test_lines_of_json_that_are_no_table_are_refused(text: str, said: str, tmp_path, capsys) -> None:
    (tmp_path / "D").mkdir()
    (tmp_path / "D/1.jpg").write_bytes(picture(1))
    (tmp_path / "x.jsonl").write_text(text)
    command = ["pack", str(tmp_path / "D"), str(tmp_path / "out"), "--csv", str(tmp_path / "x.jsonl")]
    assert cli.main(command) in (2, 3)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "out").exists()
