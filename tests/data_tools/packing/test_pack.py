from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import webdataset
from sample_files import files, originals, picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import DataError, UsageError
from data_tools.images.decode import decode
from data_tools.packing.pack import pack
from data_tools.shards.shard_set import ShardSet


def test_webdataset_reads_the_same_bytes_under_awkward_names(image_folder, tmp_path) -> None:
    (packed,) = pack(image_folder, tmp_path / "out", shard_size=10_000)
    classes = ["Zebra", "ant", "bee"]  # plain byte order
    assert (packed.images, packed.classes, packed.ignored) == (23, 3, ("ant/.hidden.jpg", "ant/Thumbs.db"))
    assert packed.shards > 2
    wanted = {
        str(path.relative_to(image_folder)): path.read_bytes()
        for path in image_folder.rglob("*")
        if path.is_file() and path.name not in (".hidden.jpg", "Thumbs.db")
    }
    found = originals(tmp_path / "out")
    assert {path: image for path, (image, _) in found.items()} == wanted
    assert all(classes[label] == path.split("/")[0] for path, (_, label) in found.items())
    shards = ShardSet.open(tmp_path / "out")
    assert shards.classes == classes and shards.num_classes == 3
    assert sorted(shards.key(i) for i in range(23)) == [f"{n:09d}" for n in range(23)]
    images = {image: label for image, label in found.values()}
    assert all(images[shards.read(i)] == shards.label(i) for i in range(23))


def test_bytes_depend_on_source_and_options_only(image_folder, tmp_path) -> None:
    for name in ("one", "two"):
        pack(image_folder, tmp_path / name, shard_size=10_000)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    pack(image_folder, tmp_path / "seed", shard_size=10_000, seed=1)
    assert list(originals(tmp_path / "seed")) != list(originals(tmp_path / "one"))
    pack(image_folder, tmp_path / "plain", shuffle=False)
    paths = list(originals(tmp_path / "plain"))
    assert paths == sorted(paths, key=str.encode)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(image_folder, tmp_path, monkeypatch) -> None:
    pack(image_folder, tmp_path / "whole", shard_size=10_000)
    whole = files(tmp_path / "whole")

    class Stop(Exception):
        pass

    write = webdataset.TarWriter.write
    for stop_after in (1, 9, 15, 22):
        folder, written = tmp_path / f"stop{stop_after}", []

        def write_some(self, sample, written=written, stop_after=stop_after):
            if len(written) == stop_after:
                raise Stop
            written.append(sample["__key__"])
            return write(self, sample)

        monkeypatch.setattr(webdataset.TarWriter, "write", write_some)
        with pytest.raises(Stop):
            pack(image_folder, folder, shard_size=10_000)
        monkeypatch.setattr(webdataset.TarWriter, "write", write)
        assert not (folder / "shardindex.json").exists()
        pack(image_folder, folder, shard_size=10_000)
        assert files(folder) == whole
    pack(image_folder, folder, shard_size=10_000)  # a finished one stays as it is
    assert files(folder) == whole


def test_a_folder_that_holds_something_else_is_refused(image_folder, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds something else \('thesis.tex'\)"):
        pack(image_folder, out)
    assert list(files(out)) == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    write_tar(out / "shard-000000.tar", [("1.jpg", picture(1))])
    with pytest.raises(UsageError, match=r"already holds shard-000000\.tar"):
        pack(image_folder, out)
    pack(image_folder, tmp_path / "other")
    with pytest.raises(UsageError, match="another source or other options"):
        pack(image_folder, tmp_path / "other", seed=3)
    with pytest.raises(UsageError, match="is a file"):
        pack(image_folder, image_folder / "ant" / "1.jpg")


def test_a_split_parts_the_images_under_the_same_classes(image_folder, tmp_path) -> None:
    train, val = pack(image_folder, tmp_path / "out", split=("val", 0.2))
    assert (train.images, val.images) == (18, 5)
    held_out = set(originals(tmp_path / "out/val"))
    assert len(held_out | set(originals(tmp_path / "out/train"))) == 23
    opened = [ShardSet.open(tmp_path / "out" / name) for name in ("train", "val")]
    assert opened[0].classes == opened[1].classes == ["Zebra", "ant", "bee"]
    with pytest.raises(UsageError, match="something else"):
        pack(image_folder, tmp_path / "out")


def test_a_zip_is_packed_like_the_folder(image_folder, tmp_path) -> None:
    for prefix in ("", "train/"):
        archive = tmp_path / f"images{len(prefix)}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(image_folder.rglob("*")):
                if path.is_file():
                    file.write(path, prefix + str(path.relative_to(image_folder)))
            file.writestr("__MACOSX/._1.jpg", b"litter")
        pack(archive, tmp_path / f"zip{len(prefix)}")
        pack(image_folder, tmp_path / f"folder{len(prefix)}")
        assert files(tmp_path / f"zip{len(prefix)}") == files(tmp_path / f"folder{len(prefix)}")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DataError, match="not a complete zip"):
        pack(archive, tmp_path / "cut")


def test_labels_come_from_a_csv(tmp_path) -> None:
    source = tmp_path / "flat"
    source.mkdir()
    for n in range(4):
        (source / f"{n}.jpg").write_bytes(picture(n))
    table = tmp_path / "labels.csv"

    def labels(text: str, name: str) -> tuple[dict[str, int], list[str] | None]:
        table.write_text(text)
        pack(source, tmp_path / name, csv=table)
        found = originals(tmp_path / name)
        classes = ShardSet.open(tmp_path / name).classes
        return {path: label for path, (_, label) in found.items()}, classes

    found, classes = labels("file,extra,label\n0.jpg,x,2\n1.jpg,y,0\n", "numbers")
    assert found == {"0.jpg": 2, "1.jpg": 0} and classes == ["0", "1", "2"]
    found, classes = labels("label,file\ndog,0.jpg\nCat,1.jpg\ndog,2.jpg\n", "names")
    assert found == {"0.jpg": 1, "1.jpg": 0, "2.jpg": 1} and classes == ["Cat", "dog"]
    for text, reason in (
        ("file,label\n9.jpg,1\n", r"labels\.csv:2: .* has no image '9\.jpg'"),
        ("file,label\n0.jpg,\n", "the label is empty"),
        ("file,label\n0.jpg,1\n0.jpg,1\n", "listed twice"),
        ("one,two,label\n0.jpg,0.jpg,1\n", "columns file and label"),
        ("file,label\n", "lists no images"),
    ):
        with pytest.raises((UsageError, DataError), match=reason):
            labels(text, "never")
    with pytest.raises(UsageError, match=r"outside of any class folder.*--csv"):
        pack(source, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_sources_without_classes_or_images_leave_nothing_behind(image_folder, tmp_path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        pack(tmp_path / "void", tmp_path / "out")
    with pytest.raises(UsageError, match=r"neither a folder of images or shards nor"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    shutil.copytree(image_folder, tmp_path / "splits" / "train")
    with pytest.raises(UsageError, match="the splits train, not classes"):
        pack(tmp_path / "splits", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_say_what_they_did(image_folder, tmp_path, capsys) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["pack", str(image_folder), out, "--shard-size", "0.01MB"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("packed 23 images, 3 classes, ") and said.out.endswith(f"-> {out}\n")
    assert "passed over: 2 files" in said.err
    assert cli.main(["index", out]) == 0
    assert capsys.readouterr().out.startswith("indexed 23 samples")
    assert cli.main(["verify", out, "--decode"]) == 0
    assert capsys.readouterr().out.startswith("23 samples, 3 classes, ")
    assert cli.main(["pack", str(image_folder), str(tmp_path / "quiet"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_verify_names_what_is_wrong(make_shards, capsys) -> None:
    folder = make_shards([4, 4], bad=frozenset({5})).folder
    assert cli.main(["verify", str(folder)]) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(folder), "--decode"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("part-001.tar:00005: ") and "Truncated" in lines[0]
    assert lines[1] == "8 samples, 5 classes, 2 shards, 1 bad"
    data = bytearray((folder / "part-000.tar").read_bytes())
    shard = ShardSet.open(folder)
    data[int(shard.table["offset"][0]) + 40] ^= 1  # inside an image: no size and no header tells
    (folder / "part-000.tar").write_bytes(data)
    (folder / "part-001.tar").write_bytes((folder / "part-001.tar").read_bytes()[:-9000])
    assert cli.main(["verify", str(folder)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("part-000.tar: its sha256 is not the one")
    assert lines[1].startswith("part-001.tar: ") and lines[-1].endswith("2 bad")


def test_verify_names_samples_that_the_index_left_out(tmp_path, capsys) -> None:
    members = [("a.jpg", picture(1)), ("a.cls", b"0"), ("b.jpg", picture(2)), ("b.cls", b"+1")]
    write_tar(tmp_path / "x.tar", members)
    assert cli.main(["index", str(tmp_path)]) == 3
    assert "x.tar:b: label '+1'" in capsys.readouterr().err
    assert cli.main(["index", str(tmp_path), "--allow-unlabelled"]) == 0
    assert "left out x.tar:b: label '+1'" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path)]) == 3
    assert capsys.readouterr().out.startswith("x.tar:b: label '+1'")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["pack"], 2),
        (["pack", "nowhere", "out"], 2),
        (["pack", "nowhere", "out", "--split", "val"], 2),
        (["pack", "nowhere", "out", "--shard-size", "big"], 2),
        (["index", "nowhere"], 2),
        (["verify", "nowhere"], 2),
    ],
)
def test_a_mistake_ends_in_exit_code_2(arguments, code, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found = cli.main(arguments)
    except SystemExit as exit_:
        found = exit_.code
    assert found == code and "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_module_is_a_command_without_tracebacks(tmp_path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", picture(1))])
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:600])
    done = subprocess.run(
        [sys.executable, "-m", "data_tools", "index", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(cli.__file__).parents[1],
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "x.tar is cut short" in done.stderr


def test_packed_images_decode(image_folder, tmp_path) -> None:
    pack(image_folder, tmp_path / "out")
    shards = ShardSet.open(tmp_path / "out")
    assert all(decode(shards.read(i), 10**6).shape == (40, 56, 3) for i in range(len(shards)))
