"""Links in a source: what leaves it is not packed unless asked, and each one is counted."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest
from sample_files import originals, picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import DataError
from data_tools.packing.listing import Reason
from data_tools.packing.pack import pack
from data_tools.shards.index import build_index


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of one image, and beside them a folder that links may lead to."""
    for name in ("src/cat/1.jpg", "src/dog/1.jpg", "outside/1.jpg", "outside/deep/2.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(len(name)))
    return tmp_path / "src"


@pytest.mark.parametrize(
    ("where", "target"),
    [
        *(
            ("cat/l.jpg", "../../outside/1.jpg"),
            ("cat/l.jpg", "{outside}/1.jpg"),
            ("cat/l.jpg", "/etc/passwd"),
        ),
        *(("cow", "../outside"), ("cat/more", "{outside}"), ("cat/more", "../../outside/deep")),
        *(("cat/l.jpg", "../dog/../../outside/1.jpg"),),
    ],
)
def test_a_link_that_leaves_the_source_is_followed_only_when_asked(where, target, source, capsys) -> None:
    (source / where).symlink_to(target.format(outside=source.parent / "outside"))
    assert cli.main(["pack", str(source), str(source.parent / "out")]) == 0
    assert set(originals(source.parent / "out")) == {"cat/1.jpg", "dog/1.jpg"}
    assert f"(--follow-links takes them): 1, first {where!r}" in capsys.readouterr().err
    assert cli.main(["pack", str(source), str(source.parent / "all"), "--follow-links"]) == 0
    assert "links to files and folders that were followed: 1" in capsys.readouterr().err
    assert len(originals(source.parent / "all")) > 2


def test_a_source_of_links_only_says_how_to_take_them(source) -> None:
    for name in ("cat", "dog"):
        (source / name / "1.jpg").unlink()
        (source / name / "1.jpg").symlink_to(source.parent / "outside/1.jpg")
    with pytest.raises(DataError, match=r"no image .*--follow-links takes them\): 2, first 'cat/1\.jpg'"):
        pack(source, source.parent / "out")
    assert pack(source, source.parent / "out", follow_links=True)[0].images == 2


def test_a_source_that_is_a_link_and_links_inside_of_it_are_taken(source) -> None:
    (source.parent / "alias").symlink_to("src")
    (source / "cow").symlink_to("cat")
    (source / "dog/2.jpg").symlink_to("../cat/1.jpg")
    (packed,) = pack(source.parent / "alias", source.parent / "out")
    assert set(originals(packed.folder)) == {"cat/1.jpg", "cow/1.jpg", "dog/1.jpg", "dog/2.jpg"}
    assert not packed.ignored and "were followed: 2" in str(packed.account)


@pytest.mark.parametrize("follow", [False, True])
def test_broken_links_loops_and_what_is_no_file_are_counted(source, follow) -> None:
    (source / "cat/gone.jpg").symlink_to("nowhere.jpg")
    (source / "cat/self.jpg").symlink_to("self.jpg")
    (source / "cat/up").symlink_to("../..") if follow else (source / "cat/up").symlink_to("..")
    os.mkfifo(source / "cat/pipe.jpg")
    (source / "cat/null.jpg").symlink_to("/dev/null")
    (packed,) = pack(source, source.parent / "out", follow_links=follow)
    passed = packed.account.passed
    assert passed[Reason.BROKEN_LINK] == ["cat/gone.jpg", "cat/self.jpg"]
    assert passed[Reason.LOOP] == ["cat/up"]
    if follow:
        assert passed[Reason.SPECIAL] == ["cat/null.jpg", "cat/pipe.jpg"]
    else:
        assert passed[Reason.SPECIAL] == ["cat/pipe.jpg"]
        assert passed[Reason.OUTSIDE_LINK] == ["cat/null.jpg"]


def test_few_links_cannot_make_endlessly_many_images(source) -> None:
    for n in range(40):
        (source / f"d{n}").mkdir()
        (source / f"d{n}/a").symlink_to(f"../d{n + 1}")
        (source / f"d{n}/b").symlink_to(f"../d{n + 1}")
    (source / "d40").mkdir()
    (source / "d40/1.jpg").write_bytes(picture(1))
    (packed,) = pack(source, source.parent / "out", class_folders=True)
    assert packed.images == 5 and len(packed.account.passed[Reason.LOOP]) == 4 * 39


def test_links_in_a_zip_are_no_images(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cat/1.jpg", picture(1))
        archive.writestr("dog/1.jpg", picture(2))
        link = zipfile.ZipInfo("dog/2.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    (packed,) = pack(tmp_path / "x.zip", tmp_path / "out")
    assert packed.images == 2 and packed.account.passed[Reason.ARCHIVED_LINK] == ["dog/2.jpg"]


@pytest.mark.parametrize("name", ["..\\evil\\1.jpg", "\\evil\\1.jpg", "C:\\evil\\1.jpg", "../evil/1.jpg"])
def test_a_zip_that_leads_out_of_itself_is_refused(name: str, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cat\\1.jpg", picture(1))
        archive.writestr(name, picture(2))
    with pytest.raises(DataError, match="not a path inside it"):
        pack(tmp_path / "x.zip", tmp_path / "out")


def test_side_files_in_the_folder_of_the_shards_do_no_harm(source) -> None:
    out = source.parent / "out"
    (out / "@eaDir").mkdir(parents=True)
    for name in (".DS_Store", "._shard-000000.tar", "Thumbs.db", "@eaDir/x"):
        (out / name).write_bytes(b"side")
    pack(source, out)
    assert pack(source, out)[0].images == 2 and build_index(out).samples == 2
    write_tar(source.parent / "._b.tar", [("a.jpg", picture(1))])
    assert (out / "@eaDir/x").read_bytes() == b"side"


def test_a_csv_that_names_what_is_passed_over_is_told_why(source) -> None:
    (source / "cat/2.gif").write_bytes(picture(1, kind="GIF"))
    (source / "x.csv").write_text("file,label\ncat/1.jpg,a\ncat/2.gif,b\n")
    with pytest.raises(
        DataError, match=r"'cat/2\.gif': it is passed over \(images of formats that --convert"
    ):
        pack(source, source.parent / "out", csv=source / "x.csv")
    (source / "cat/1.seg.jpg").write_bytes(picture(3))
    (source / "x.csv").write_text("file,label\ncat/1.jpg,a\ncat/1.seg.jpg,b\n")
    assert pack(source, source.parent / "out", csv=source / "x.csv")[0].images == 2  # the csv decides
