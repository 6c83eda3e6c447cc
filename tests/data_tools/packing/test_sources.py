"""What pack takes: tar archives, shards of others, several labels, images made smaller."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sample_files import files, originals, picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import DataError, UsageError
from data_tools.images.decode import decode
from data_tools.packing.csv_table import CsvOptions
from data_tools.packing.pack import pack
from data_tools.packing.recode import Recode
from data_tools.packing.sources import FolderSource
from data_tools.shards.index import build_index
from data_tools.shards.labels import LabelRules
from data_tools.shards.shard_set import ShardSet


@pytest.mark.parametrize("prefix", ["", "./", "./train/"])
def test_a_tar_is_packed_like_the_folder(image_folder, tmp_path, prefix) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(image_folder, prefix or ".")
    pack(archive, tmp_path / "tar")
    pack(image_folder, tmp_path / "folder")
    assert files(tmp_path / "tar") == files(tmp_path / "folder")


def test_a_tar_that_could_lose_images_is_refused(tmp_path) -> None:
    archive = tmp_path / "x.tar"
    for members, reason in (
        ([("cat/1.jpg", picture(1)), ("../evil/1.jpg", picture(2))], "not a path inside it"),
        ([("cat/1.jpg", picture(1)), ("/evil/1.jpg", picture(2))], "not a path inside it"),
        ([("cat/1.jpg", picture(1)), ("cat/1.jpg", picture(2))], r"'cat/1\.jpg' twice"),
    ):
        write_tar(archive, members)
        with pytest.raises((DataError, UsageError), match=reason):
            pack(archive, tmp_path / "out")
    write_tar(archive, [("cat/1.jpg", picture(1)), ("dog/1.jpg", picture(2))])
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut short"):
        pack(archive, tmp_path / "out")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cat/1.jpg"))
    with pytest.raises(DataError, match="gzip"):
        pack(tmp_path / "x.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("label", "packed"), [(("1.cls", b"2"), 2), (("1.json", b'{"label": 2}'), 2)])
def test_a_tar_that_is_a_shard_is_packed_as_one(label: tuple[str, bytes], packed: int, tmp_path) -> None:
    write_tar(tmp_path / "x.tar", [("1.jpg", picture(1)), label])
    pack(tmp_path / "x.tar", tmp_path / "out")
    assert ShardSet.open(tmp_path / "out").label(0) == packed


def test_class_folders_in_a_tar_stay_classes_where_images_have_a_json(tmp_path) -> None:
    members = [(f"{name}/1.{kind}", picture(1)) for name in ("cat", "dog") for kind in ("jpg", "json")]
    write_tar(tmp_path / "x.tar", members)
    pack(tmp_path / "x.tar", tmp_path / "out")
    assert ShardSet.open(tmp_path / "out").classes == ["cat", "dog"]


def test_links_in_a_tar_are_counted(tmp_path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("cat/1.jpg")
        info.size = len(picture(1))
        tar.addfile(info, io.BytesIO(picture(1)))
        for name, kind in (("cat/2.jpg", tarfile.LNKTYPE), ("cat/3.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "cat/1.jpg"
            tar.addfile(info)
    (packed,) = pack(tmp_path / "x.tar", tmp_path / "out")
    assert packed.images == 1 and packed.ignored == ("cat/2.jpg", "cat/3.jpg")


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_of_others_are_packed_anew_with_their_labels(tmp_path, indexed) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with webdataset.ShardWriter(str(source / "%02d.tar"), maxcount=4, verbose=0) as writer:
        for n in range(10):
            writer.write({"__key__": f"k{n}", "jpg": picture(n), "cls": n % 3})
    if indexed:
        build_index(source)
    before = files(source)
    (packed,) = pack(source, tmp_path / "out", shard_size=10_000)
    assert (packed.images, packed.classes) == (10, 3) and files(source) == before
    found = originals(tmp_path / "out")
    assert found == {f"{n // 4:02d}.tar/k{n}.jpg": (picture(n), n % 3) for n in range(10)}
    (source / "classes.json").write_text('["a", "b", "c"]')
    pack(source, tmp_path / "named")
    assert ShardSet.open(tmp_path / "named").classes == ["a", "b", "c"]
    with pytest.raises(UsageError, match="leave out --csv"):
        pack(source, tmp_path / "never", csv=tmp_path / "x.csv")


def test_samples_that_cannot_be_packed_anew_are_named(tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tar(source / "x.tar", [("a.jpg", picture(1)), ("a.cls", b"0"), ("b.jpg", picture(2))])
    (packed,) = pack(source, tmp_path / "out")
    assert packed.images == 1 and "x.tar:b: no label" in packed.ignored[0]
    write_tar(source / "x.tar", [("a.jpg", picture(1)), ("b.jpg", picture(2))])
    (packed,) = pack(source, tmp_path / "unlabelled")
    assert packed.images == 2 and ShardSet.open(tmp_path / "unlabelled").labels([0, 1]).tolist() == [-1, -1]


def test_what_an_index_leaves_out_is_said_when_its_shards_are_packed_anew(tmp_path) -> None:
    (tmp_path / "source").mkdir()
    write_tar(tmp_path / "source/x.tar", [("a.jpg", picture(1)), ("a.cls", b"0"), ("b.jpg", picture(2))])
    build_index(tmp_path / "source")
    (packed,) = pack(tmp_path / "source", tmp_path / "out")
    assert packed.images == 1 and len(packed.ignored) == 1 and "verify" in packed.ignored[0]


def test_a_tar_beside_images_is_not_taken_for_all_there_is(image_folder) -> None:
    write_tar(image_folder / "backup.tar", [("a.jpg", picture(1)), ("a.cls", b"0")])
    with pytest.raises(UsageError, match=r"holds images \(.*\) and a tar \(backup\.tar\)"):
        pack(image_folder, image_folder.parent / "out")


def test_a_file_that_is_named_like_an_extension_is_no_image(image_folder) -> None:
    (image_folder / "ant" / "jpg").write_bytes(picture(1))
    (packed,) = pack(image_folder, image_folder.parent / "out")
    assert packed.images == 23 and "ant/jpg" in packed.ignored


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,label\n0.jpg,cat,dog\n", "more cells than columns"),
        ("file,label,label\n0.jpg,cat,dog\n", "once, in its first line"),
        ("file,label\nimages/0.jpg,cat\n", "named by their path inside"),
    ],
)
def test_a_csv_that_could_mean_two_things_is_refused(tmp_path, table: str, says: str) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/0.jpg").write_bytes(picture(0))
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises((UsageError, DataError), match=says):
        pack(tmp_path / "flat", tmp_path / "out", csv=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,label\n./0.jpg,cat\n")
    assert pack(tmp_path / "flat", tmp_path / "out", csv=tmp_path / "labels.csv")[0].images == 1


def test_a_pack_that_fails_leaves_nothing_and_two_do_not_share_a_folder(image_folder, monkeypatch) -> None:
    out = image_folder.parent / "out"
    with monkeypatch.context() as changed:
        changed.setattr(FolderSource, "read", lambda self, path: b"shorter")
        with pytest.raises(DataError, match="changed while it was packed"):
            pack(image_folder, out)
    assert list(out.iterdir()) == []

    def meanwhile(more: int, total: int) -> None:
        with pytest.raises(UsageError, match="being written by another pack"):
            pack(image_folder, out)

    assert pack(image_folder, out, on_images=meanwhile)[0].images == 23


def test_several_labels_come_through_a_csv_and_through_shards(tmp_path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for n in range(3):
        (flat / f"{n}.jpg").write_bytes(picture(n))
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.jpg,dog|cat\n1.jpg,cat\n2.jpg,cat| bird |dog\n")
    several = CsvOptions(table, separator="|")
    pack(flat, tmp_path / "out", csv=several, shuffle=False)
    pack(tmp_path / "out", tmp_path / "again", shuffle=False)
    for folder in ("out", "again"):
        shards = ShardSet.open(tmp_path / folder)
        assert shards.classes == ["bird", "cat", "dog"]
        assert shards.multilabel and shards.max_labels == 3
        assert [shards.labels_of(i) for i in range(3)] == [(2, 1), (1,), (1, 0, 2)]
        rows = np.stack([shards.label_row(i) for i in range(3)])
        assert rows.tolist() == [[2, 1, -1], [1, -1, -1], [1, 0, 2]]
        assert shards.labels(range(3)).tolist() == [2, 1, 1]  # the first of each
        assert cli.main(["verify", str(tmp_path / folder)]) == 0
    for text, reason in (("a|", "label is empty"), ("a|a", "listed twice"), ("", "label is empty")):
        table.write_text(f"file,label\n0.jpg,{text}\n")
        with pytest.raises(DataError, match=reason):
            pack(flat, tmp_path / "never", csv=several)


def test_lists_of_labels_in_shards_are_indexed_strictly(tmp_path) -> None:
    labels = {"a": [3, 7], "b": [], "c": 5, "d": [1, 1], "e": [1, -2], "f": "x", "g": [True], "h": [8]}
    members = []
    for key, label in labels.items():
        members += [(f"{key}.jpg", picture(1)), (f"{key}.json", json.dumps({"label": label}).encode())]
    write_tar(tmp_path / "x.tar", [*members, ("i.jpg", picture(2))])
    with pytest.raises(DataError, match=r"4 labels are no class(.*\n)+.*x\.tar:f: label 'x'"):
        build_index(tmp_path)
    summary = build_index(tmp_path, rules=LabelRules(allow_unlabelled=True))
    problems = {problem.key: problem.reason for problem in summary.problems}
    assert problems.keys() == {"d", "e", "f", "g", "i"} and "twice" in problems["d"]
    shards = ShardSet.open(tmp_path)
    assert [shards.key(i) for i in range(4)] == ["a", "b", "c", "h"]
    assert [shards.labels_of(i) for i in range(4)] == [(3, 7), (), (5,), (8,)]
    assert shards.num_classes == 9 and shards.label(1) == -1 and shards.max_labels == 2
    (tmp_path / "shardindex.labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels\.npy is missing"):
        ShardSet.open(tmp_path)
    write_tar(tmp_path / "x.tar", [("a.jpg", picture(1)), ("a.cls", b"0")])
    build_index(tmp_path)
    assert not ShardSet.open(tmp_path).multilabel


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One class: large, small, grey, turned, progressive, PNG with alpha, and one cut short."""
    folder = tmp_path / "photos" / "one"
    folder.mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8)
    pixels = Image.fromarray(colours).resize((200, 120), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels.save(folder / "large.jpg", quality=98)
    pixels.resize((50, 30)).save(folder / "small.jpg", quality=60)
    pixels.convert("L").save(folder / "grey.jpg", quality=98)
    pixels.save(folder / "turned.jpg", exif=turned, quality=98)
    pixels.resize((50, 30)).save(folder / "progressive.jpg", progressive=True)
    pixels.convert("RGBA").save(folder / "alpha.png")
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    return folder.parent


def opened(folder: Path) -> dict[str, Image.Image]:
    return {path: Image.open(io.BytesIO(data)) for path, (data, _) in originals(folder).items()}


def test_images_are_made_smaller_on_request_only(photos, tmp_path) -> None:
    pack(photos, tmp_path / "as-it-is")
    packed = {path: data for path, (data, _) in originals(tmp_path / "as-it-is").items()}
    assert packed == {f"one/{path.name}": path.read_bytes() for path in (photos / "one").iterdir()}

    (small,) = pack(photos, tmp_path / "small", recode=Recode(max_side=100))
    assert len(small.unreadable) == 1 and small.unreadable[0].startswith("one/cut.jpg: ")
    found = opened(tmp_path / "small")
    assert {path: image.size for path, image in found.items() if path != "one/cut.jpg"} == {
        "one/large.jpg": (100, 60),
        "one/grey.jpg": (100, 60),
        "one/turned.jpg": (60, 100),
        "one/alpha.png": (100, 60),
        "one/small.jpg": (50, 30),
        "one/progressive.jpg": (50, 30),
    }
    assert found["one/alpha.png"].format == "PNG" and found["one/grey.jpg"].mode == "L"
    kept = {path: data for path, (data, _) in originals(tmp_path / "small").items()}
    for name in ("small.jpg", "progressive.jpg", "cut.jpg"):
        assert kept[f"one/{name}"] == (photos / "one" / name).read_bytes()
    original = decode((photos / "one/large.jpg").read_bytes(), 10**6)
    wanted = np.asarray(Image.fromarray(original).resize((100, 60), Image.Resampling.BICUBIC), float)
    assert np.abs(decode(kept["one/large.jpg"], 10**6) - wanted).mean() < 3


def test_quality_makes_no_image_larger_and_baseline_ends_progressive(photos, tmp_path) -> None:
    pack(photos, tmp_path / "quality", recode=Recode(quality=80))
    found = {path: data for path, (data, _) in originals(tmp_path / "quality").items()}
    sizes = {path: (len(data), (photos / path).stat().st_size) for path, data in found.items()}
    assert all(new <= old for new, old in sizes.values())
    assert sizes["one/large.jpg"][0] < sizes["one/large.jpg"][1] / 2
    assert sizes["one/small.jpg"][0] == sizes["one/small.jpg"][1]  # was of a lower quality already

    pack(photos, tmp_path / "baseline", recode=Recode(baseline=True))
    found = opened(tmp_path / "baseline")
    assert not any(image.info.get("progressive") for image in found.values())
    packed = {path: data for path, (data, _) in originals(tmp_path / "baseline").items()}
    changed = {path for path, data in packed.items() if data != (photos / path).read_bytes()}
    assert changed == {"one/progressive.jpg"}


def test_the_number_of_workers_changes_no_byte(photos, tmp_path) -> None:
    arguments = ["--max-side", "100", "--quality", "70", "--shard-size", "8KB", "--seed", "3"]
    for workers in ("1", "5"):
        out = str(tmp_path / workers)
        assert cli.main(["pack", str(photos), out, *arguments, "--workers", workers]) == 0
    assert files(tmp_path / "1") == files(tmp_path / "5")
    assert len(list((tmp_path / "1").glob("*.tar"))) > 1
    with pytest.raises(UsageError, match="other options"):
        pack(photos, tmp_path / "1", shard_size=8000, seed=3, recode=Recode(100, 71))


def test_packing_smaller_images_goes_on_after_an_interruption(photos, tmp_path, monkeypatch) -> None:
    options = {"shard_size": 8000, "recode": Recode(max_side=150), "workers": 3}
    pack(photos, tmp_path / "whole", **options)
    write, written = webdataset.TarWriter.write, []

    def stop(self, sample):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(sample)
        return write(self, sample)

    monkeypatch.setattr(webdataset.TarWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(photos, tmp_path / "stopped", **options)
    monkeypatch.setattr(webdataset.TarWriter, "write", write)
    assert list((tmp_path / "stopped").glob("*.tar"))
    pack(photos, tmp_path / "stopped", **options)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
