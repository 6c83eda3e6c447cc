"""The table of layouts in docs/data.md: each row is made here, packed, and held to what the row says."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_files import picture, write_tar

from data_tools import __main__ as cli

DOCS = Path(__file__).parents[3] / "docs/data.md"
KINDS = {"png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}


def content(name: str, number: int) -> bytes:
    """An image if the name says so, or text."""
    kind = KINDS.get(name.rpartition(".")[2].lower(), "JPEG")
    image = name.lower().endswith((".jpg", ".jpeg", ".jfif", *KINDS))
    return picture(number, 12, 16, kind) if image else b"text"


def folder(*names: str) -> Callable[[Path], Path]:
    """A source on disk with these files; a name that ends in a slash is an empty folder."""

    def make(at: Path) -> Path:
        for number, name in enumerate(names):
            path = at / "src" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir()
            else:
                path.write_bytes(content(name, number))
        return at / "src"

    return make


def zipped(*names: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        with zipfile.ZipFile(at / "src.zip", "w") as archive:
            for number, name in enumerate(names):
                archive.writestr(name, content(name.replace("\\", "/"), number))
        return at / "src.zip"

    return make


def tars(*names: str, inside: str = "{stem}_{n}.JPEG") -> Callable[[Path], Path]:
    """A folder of tars with two images each."""

    def make(at: Path) -> Path:
        (at / "src").mkdir()
        for name in names:
            stem = name.removesuffix(".tar")
            write_tar(
                at / "src" / name, [(inside.format(stem=stem, n=n), picture(n, 12, 16)) for n in (1, 2)]
            )
        return at / "src"

    return make


def tar_of_tars(at: Path) -> Path:
    source = tars("n01440764.tar", "n01443537.tar")(at)
    write_tar(at / "train.tar", [(path.name, path.read_bytes()) for path in sorted(source.iterdir())])
    return at / "train.tar"


def with_side_tar(at: Path) -> Path:
    (at / "src").mkdir()
    write_tar(
        at / "src/a.tar", [("x.jpg", picture(1)), ("x.cls", b"0"), ("y.jpg", picture(2)), ("y.cls", b"1")]
    )
    (at / "src/._a.tar").write_bytes(b"\0\5\x16\7")
    (at / "src/.DS_Store").write_bytes(b"Bud1")
    return at / "src"


def with_masks_in_shards(at: Path) -> Path:
    (at / "src").mkdir()
    members = [(f"{key}.{kind}", picture(1)) for key in "xy" for kind in ("input.jpg", "jpg", "seg.png")]
    write_tar(at / "src/a.tar", sorted([*members, ("x.cls", b"0"), ("y.cls", b"1")]))
    return at / "src"


def tiny_imagenet(at: Path) -> Path:
    source = folder("images/val_0.JPEG", "images/val_1.JPEG", "images/val_2.JPEG")(at)
    rows = ["val_0.JPEG\tn02\t0\t32\t44\t62", "val_1.JPEG\tn01\t0\t0\t1\t1", "val_2.JPEG\tn02\t0\t0\t1\t1"]
    (source / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return source


def linked(at: Path) -> Path:
    source = folder("cat/1.jpg", "dog/1.jpg")(at)
    (at / "secret.jpg").write_bytes(picture(7))
    (at / "elsewhere").mkdir()
    (at / "elsewhere/1.jpg").write_bytes(picture(8))
    (source / "cat/2.jpg").symlink_to(at / "secret.jpg")
    (source / "cow").symlink_to(at / "elsewhere")
    (source / "cat/more").symlink_to(at / "elsewhere")
    return source


def linked_inside(at: Path) -> Path:
    source = folder("cat/1.jpg", "dog/1.jpg")(at)
    (source / "dog/same.jpg").symlink_to("1.jpg")
    (source / "dog/up").symlink_to("..")
    (source / "dog/gone.jpg").symlink_to("nowhere.jpg")
    return source


def hidden(*where: str) -> Callable[[Path], Path]:
    names = [".a.jpg", "._1.jpg", ".thumbs/1.jpg", "@eaDir/1.jpg/x.jpg", "__MACOSX/1.jpg", "Thumbs.db"]
    names += [
        "desktop.ini",
        "lost+found/1.jpg",
        "$RECYCLE.BIN/1.jpg",
        "#recycle/1.jpg",
        "System Volume Information/1.jpg",
    ]
    return folder("cat/1.jpg", "dog/1.jpg", *(f"{at}{name}" for at in where for name in names))


def one_page(name: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        source = folder("cat/1.jpg", "dog/1.jpg")(at)
        (source / name).write_bytes(picture(3, 12, 16, "GIF"))
        return source

    return make


SPLIT = [f"{{}}/{name}/{n}.jpg" for name in ("cat", "dog") for n in (1, 2)]


def splits(*names: str) -> Callable[[Path], Path]:
    return folder(*(path.format(name) for name in names for path in SPLIT))


def with_csv(at: Path) -> Path:
    source = folder("1.jpg", "2.jpg")(at)
    (at / "labels.csv").write_text("file,label\n1.jpg,cat\n")
    return source


def with_metadata(at: Path) -> Path:
    source = folder("1.jpg", "2.jpg")(at)
    rows = [{"file_name": "1.jpg", "label": "cat"}, {"file_name": "2.jpg", "label": "dog"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return source


def with_table_of_splits(at: Path) -> Path:
    source = folder("train/1.jpg", "val/2.jpg")(at)
    (at / "labels.csv").write_text("file,label\ntrain/1.jpg,cat\nval/2.jpg,dog\n")
    return source


def labelled(*keys: str) -> list[tuple[str, bytes]]:
    pairs = (("jpg", picture(1)), ("cls", b"%d"))
    return [
        (f"{key}.{kind}", data % (n % 2) if kind == "cls" else data)
        for n, key in enumerate(keys)
        for kind, data in pairs
    ]


def shards_of_splits(at: Path) -> Path:
    (at / "src").mkdir()
    for name in ("train-0.tar", "val-0.tar"):
        write_tar(at / "src" / name, labelled("a", "b"))
    return at / "src"


def shard_of_splits(at: Path) -> Path:
    (at / "src").mkdir()
    write_tar(at / "src/0.tar", labelled("train/0", "val/0"))
    return at / "src"


# The first cell of a row -> the source, and options of pack.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "class folders": (folder("cat/1.jpg", "dog/a/b/1.png", "dog/2.jfif"), []),
    "class folders in a zip or tar, below others": (zipped("x/y/cat/1.jpg", "x/y/dog/1.jpg"), []),
    "a zip with Windows' backslashes": (zipped("x\\cat\\1.jpg", "x\\dog\\1.jpg"), []),
    "an empty class folder, or one without usable images": (
        folder("cat/1.jpg", "dog/1.jpg", "cow/", "hen/1.gif", "hen/2.bmp"),
        [],
    ),
    "one class folder": (folder("cat/1.jpg", "cat/2.jpg"), []),
    "images outside of class folders": (folder("cat/1.jpg", "2.jpg", "labels.txt"), []),
    "a flat folder with `--csv`": (with_csv, ["--csv", "labels.csv"]),
    "`train` and `val`, `Training` and `Testing`, `seg_train` and `seg_test`, ...": (
        splits("Training", "Testing"),
        [],
    ),
    "`train`, `val` and `extra`": (splits("train", "val", "extra"), []),
    "other folders with the same sub-folders": (splits("fold1", "fold2"), []),
    "the same with `--class-folders`": (splits("fold1", "fold2"), ["--class-folders"]),
    "`train` and `test` inside each class": (
        folder("cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg", "dog/test/2.jpg"),
        [],
    ),
    "one folder around the class folders": (splits("animals"), []),
    "a copy or another set among class folders": (
        folder("cat/1.jpg", "dog/1.jpg", "animals/cat/1.jpg", "animals/dog/1.jpg"),
        [],
    ),
    "numbered parts of a set": (folder("images_001/1.jpg", "images_002/2.jpg"), []),
    "`00000/000000000.jpg`, as img2dataset": (folder("00000/000000000.jpg", "00001/000010000.jpg"), []),
    "sets with `images` between": (
        folder(*(f"{a}/images/{b}/1.jpg" for a in ("amazon", "dslr") for b in ("bike", "mug"))),
        [],
    ),
    "folders of class folders": (folder("a/alley/1.jpg", "a/bar/1.jpg", "b/barn/1.jpg"), []),
    "an image for each class": (folder("1/1.jpg", "2/1.jpg", "3/1.jpg", "4/1.jpg"), []),
    "`metadata.jsonl` beside images": (with_metadata, []),
    "the same with `--csv`": (with_metadata, ["--csv", "src/metadata.jsonl"]),
    "a table of images in `train` and `val`": (
        with_table_of_splits,
        ["--csv", "labels.csv"],
    ),
    "shards of train and val": (shards_of_splits, []),
    "the same with `--one-set`": (shards_of_splits, ["--one-set"]),
    "a shard with keys of train and val": (shard_of_splits, []),
    "`images`, `masks`, `JPEGImages`, ...": (folder("images/1.jpg", "masks/1.png"), []),
    "tiny-imagenet's `val`": (tiny_imagenet, []),
    "tiny-imagenet's `train`": (folder("n01/images/1.JPEG", "n01/n01_boxes.txt", "n02/images/1.JPEG"), []),
    "ImageNet's tars, one for each class": (tars("n01440764.tar", "n01443537.tar"), []),
    "a tar of such tars": (tar_of_tars, []),
    "tars with other names, one for each class": (tars("cat.tar", "dog.tar", inside="{n}.jpg"), []),
    "numbered tars without labels": (tars("000.tar", "001.tar"), []),
    "shards with `._a.tar` and the like beside them": (with_side_tar, []),
    "shards with `x.input.jpg` and `x.seg.png` beside `x.jpg`": (with_masks_in_shards, []),
    "`x.input.jpg`, `x.seg.png`, `x_mask.png` beside `x.jpg`": (
        folder("cat/x.jpg", "cat/x.input.jpg", "cat/x.seg.png", "cat/x_mask.png", "dog/x.jpg", "dog/x.2.jpg"),
        [],
    ),
    "`x.png` beside `x.jpg`": (folder("cat/x.jpg", "cat/x.png", "dog/x.jpg"), []),
    "hidden files, `@eaDir`, `__MACOSX`, `Thumbs.db`, ...": (hidden("", "cat/"), []),
    "GIF, BMP, TIFF, AVIF, JPEG 2000, PPM": (folder("cat/1.jpg", "dog/1.jpg", "dog/2.gif", "dog/3.tif"), []),
    "the same with `--convert`": (folder("cat/1.gif", "dog/1.bmp", "dog/2.avif", "dog/3.tif"), ["--convert"]),
    "HEIC, JPEG XL, SVG, camera raw": (folder("cat/1.jpg", "dog/1.jpg", "dog/2.heic"), []),
    "a GIF that is named `.jpg`": (one_page("dog/2.jpg"), []),
    "links that lead out of SRC": (linked, []),
    "the same with `--follow-links`": (linked, ["--follow-links"]),
    "links inside SRC, and broken ones": (linked_inside, []),
}


def rows() -> dict[str, tuple[str, str]]:
    """The table: what lies there -> what it becomes, what is said."""
    found = {}
    for line in DOCS.read_text().partition("| SRC holds |")[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, becomes, says = (cell.strip() for cell in line.strip("|").split(" | "))
        found[name.strip()] = becomes, says
    return found


def test_the_table_and_the_layouts_are_the_same() -> None:
    assert list(rows()) == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_becomes_what_its_row_says(name: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, options = LAYOUTS[name]
    becomes, says = rows()[name]
    source = make(tmp_path).relative_to(tmp_path)
    code = cli.main(["pack", str(source), "out", *options])
    err = capsys.readouterr().err
    for said in re.findall(r"`([^`]+)`", says):
        assert said.replace("…", "") in err, err
    if becomes.startswith("refused"):
        assert code == 2 and err.startswith("error: ") and not (tmp_path / "out").exists()
        return
    assert code == 0, err
    classes = json.loads((tmp_path / "out/classes.json").read_text())
    assert classes == re.findall(r"`([^`]+)`", becomes)
    assert cli.main(["verify", "out"]) == 0
