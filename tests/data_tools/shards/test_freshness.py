"""An index is held against its shards: what was written anew, added, cut or only copied since."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import threading
import time
from pathlib import Path

import pytest
from sample_files import picture, write_tar

from data_tools import __main__ as cli
from data_tools.errors import DataError, UsageError
from data_tools.packing.pack import pack
from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet
from data_tools.shards.storage import Storage

OLD, NEW = 10**18, 2 * 10**18  # ns since 1970


def write_again(path: Path, label: int = 0) -> None:
    """Write a shard of make_shards() anew: every label is `label`, and the size stays."""
    size = path.stat().st_size
    data = path.read_bytes()
    members = []
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            members.append((member.name, b"%d" % label if member.name.endswith(".cls") else content))
    write_tar(path, members)
    assert path.stat().st_size == size and path.read_bytes() != data


def index_of(folder: Path) -> dict:
    return json.loads((folder / "shardindex.json").read_text())


def as_version_0_1(folder: Path) -> None:
    """The index without what later versions add."""
    index = index_of(folder)
    index.pop("names_sha256", None)
    for entry in index["shardlist"]:
        for key in entry.keys() - {"url", "nsamples", "filesize", "sha256"}:
            del entry[key]
    (folder / "shardindex.json").write_text(json.dumps(index, indent=1) + "\n")


@pytest.mark.parametrize("when", [OLD, NEW])
def test_a_shard_written_anew_is_refused_at_the_start(make_shards, when: int) -> None:
    folder = make_shards([4, 3]).folder
    write_again(folder / "part-001.tar")
    os.utime(folder / "part-001.tar", ns=(when, when))
    with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed.*data_tools index"):
        ShardSet.open(folder)
    with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed"):
        ShardSet.open([folder / "part-001.tar"])
    assert ShardSet.open(folder / "part-000.tar").label(3) == 3
    build_index(folder)
    assert ShardSet.open(folder).labels(range(4, 7)).tolist() == [0, 0, 0]


def test_a_copied_shard_is_compared_once(make_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards([4, 3])
    os.utime(shards.folder / "part-000.tar", ns=(OLD, OLD))
    copied = ShardSet.open(shards.folder)
    assert copied.notes == (
        f"1 shards in {shards.folder} have other times than when they were indexed, and the same content",
    )
    assert copied.index_sha256 == shards.index_sha256
    assert [copied.read(i) for i in range(7)] == [shards.read(i) for i in range(7)]
    monkeypatch.setattr(Storage, "_sha256", lambda *_: pytest.fail("compared again"))
    assert ShardSet.open(shards.folder).notes == ()


def test_a_read_only_folder_is_compared_and_not_written(make_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_shards([4, 3]).folder
    os.utime(folder / "part-000.tar", ns=(OLD, OLD))
    before = (folder / "shardindex.json").read_bytes()
    opened = os.open

    def read_only(path, flags, *rest, **options):
        if flags & os.O_RDWR and str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)  # tests may run as root, whom no mode bits stop
    assert len(ShardSet.open(folder)) == 7
    assert (folder / "shardindex.json").read_bytes() == before


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize("made_by", ["index of 0.1", "pack"])
def test_an_index_without_times_is_believed_only_if_it_is_the_newest(
    make_shards, tmp_path: Path, made_by: str, future: bool
) -> None:
    folder = make_shards([4, 3]).folder
    if made_by == "pack":
        pack(folder, tmp_path / "packed", shard_size=12_000)
        folder = tmp_path / "packed"
    else:
        as_version_0_1(folder)
    assert all("version" not in entry for entry in index_of(folder)["shardlist"])
    identity = ShardSet.open(folder).index_sha256
    shard = next(folder.glob("*.tar"))
    os.utime(shard, ns=(NEW, NEW) if future else (time.time_ns(),) * 2)
    before = (folder / "shardindex.json").read_bytes()
    compared = ShardSet.open(folder)
    assert compared.index_sha256 == identity and "the same content" in compared.notes[0]
    again = ShardSet.open(folder)
    assert again.notes == () and again.index_sha256 == identity
    assert future or (folder / "shardindex.json").read_bytes() == before
    data = bytearray(shard.read_bytes())
    data[-2000] ^= 1
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="is not what was indexed"):
        ShardSet.open(folder)


def test_an_older_file_of_the_same_size_is_found_by_verify_and_once_times_are_known(
    make_shards, capsys
) -> None:
    """The index of version 0.1 has nothing at hand by which a start could tell; see docs/data.md."""
    folder = make_shards([4, 3]).folder
    as_version_0_1(folder)
    write_again(folder / "part-001.tar")
    os.utime(folder / "part-001.tar", ns=(OLD, OLD))
    assert len(ShardSet.open(folder)) == 7
    assert cli.main(["verify", str(folder)]) == 3
    assert "part-001.tar" in (said := capsys.readouterr().out) and "the content changed" in said
    build_index(folder)
    write_again(folder / "part-001.tar", label=1)
    os.utime(folder / "part-001.tar", ns=(OLD // 2, OLD // 2))
    with pytest.raises(DataError, match="is not what was indexed"):
        ShardSet.open(folder)


@pytest.mark.parametrize("with_times", [False, True])
def test_comparing_some_shards_says_nothing_of_the_others(make_shards, with_times: bool) -> None:
    folder = make_shards([4, 3]).folder
    if not with_times:
        as_version_0_1(folder)
    for name in ("part-000.tar", "part-001.tar"):
        os.utime(folder / name, ns=(time.time_ns(),) * 2)
    write_again(folder / "part-001.tar")
    for _ in range(2):
        assert len(ShardSet.open(folder / "part-000.tar")) == 4
        with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed"):
            ShardSet.open(folder)


def test_the_identity_of_a_set_is_what_version_0_1_took_it_for(make_shards) -> None:
    shards = make_shards([4, 3])
    as_version_0_1(shards.folder)
    data = (shards.folder / "shardindex.json").read_bytes()
    assert shards.index_sha256 == hashlib.sha256(data).hexdigest()


def test_a_shard_that_came_later_is_named(make_shards, capsys) -> None:
    folder = make_shards([4, 3]).folder
    shutil.copy(folder / "part-000.tar", folder / "part-002.tar")
    shutil.copy(folder / "part-000.tar", folder / "._part-000.tar")
    (note,) = ShardSet.open(folder).notes
    assert "1 shards that its index does not list" in note and "part-002.tar" in note
    for command in (["verify", folder], ["preview", folder, folder.parent / "x.png"]):
        assert cli.main([str(word) for word in command]) == 0
        assert "note: " in (said := capsys.readouterr().err) and "part-002.tar" in said
    with pytest.raises(UsageError, match=r"1 of the 3 shards .*part-002\.tar.*data_tools index"):
        ShardSet.open(f"{folder}/part-*.tar")
    assert cli.main(["index", str(folder)]) == 0
    assert ShardSet.open(folder).notes == () and len(ShardSet.open(folder)) == 11
    assert ShardSet.open(f"{folder}/part-00[01].tar").notes == ()  # the index lists the third one


def test_a_shard_that_changes_during_a_run_is_refused_when_it_is_opened_again(make_shards) -> None:
    folder = make_shards([4, 3]).folder
    shards = ShardSet.open(folder)
    write_again(folder / "part-001.tar")
    assert shards.read(0)
    with pytest.raises(DataError, match=r"part-001\.tar is not what was indexed"):
        shards.read(5)


def test_a_shard_that_changes_while_it_is_indexed_is_refused(make_shards, monkeypatch) -> None:
    folder = make_shards([4, 3]).folder
    read = Storage.read

    def change(self: Storage, name: str, start: int, length: int) -> bytes:
        data = read(self, name, start, length)
        if name == "part-001.tar":
            os.utime(folder / name, ns=(NEW, NEW))
        return data

    monkeypatch.setattr(Storage, "read", change)
    with pytest.raises(DataError, match=r"part-001\.tar changed while it was read"):
        build_index(folder)


def test_a_folder_that_grew_while_it_was_packed_is_said(image_folder, tmp_path) -> None:
    begun, done = threading.Event(), threading.Event()

    def grow() -> None:
        begun.wait(10)
        (image_folder / "bee" / "late.jpg").write_bytes(picture(99))
        (image_folder / "bee" / "late.txt").write_bytes(b"x")
        done.set()

    thread = threading.Thread(target=grow)
    thread.start()

    def on_images(more: int, total: int) -> None:
        begun.set()
        done.wait(10)

    (packed,) = pack(image_folder, tmp_path / "out", on_images=on_images)
    thread.join()
    said = "1 images came while the others were packed and are in no shard, first 'bee/late.jpg'"
    assert packed.images == 23 and [said in warning for warning in packed.account.warnings] == [True]


@pytest.mark.parametrize("change", ["order", "name", "gone"])
@pytest.mark.parametrize("how", ["pack", "by hand", "made"])
def test_a_changed_classes_json_is_noticed_everywhere(
    how: str, change: str, tmp_path, capsys, caplog
) -> None:
    folder, file = tmp_path / "S", tmp_path / "S/classes.json"
    folder.mkdir()
    labels = (b"cat", b"dog") if how == "made" else (b"0", b"1")
    members = [
        (f"{n}.{kind}", data) for n in range(2) for kind, data in (("jpg", picture(n)), ("cls", labels[n]))
    ]
    write_tar(folder / "x.tar", members)
    if how != "made":
        file.write_text('["cat", "dog"]')
    if how == "pack":
        pack(folder, tmp_path / "P")
        folder, file = tmp_path / "P", tmp_path / "P/classes.json"
    else:
        build_index(folder)
    shards = ShardSet.open(folder)
    file.write_text('[\n "cat",\n "dog"]')  # another form of the same names
    assert ShardSet.open(folder).notes == () and cli.main(["verify", str(folder)]) == 0
    file.write_text({"order": '["dog", "cat"]', "name": '["cat", "hen"]', "gone": "[]"}[change])
    if change == "gone":
        file.unlink()
    said = f"{file} {'is gone' if change == 'gone' else 'has changed'} since shardindex.json was made"
    (note,) = ShardSet.open(folder).notes
    assert note.startswith(said) and ShardSet.open(folder).index_sha256 == shards.index_sha256
    capsys.readouterr()
    assert cli.main(["verify", str(folder)]) == 3 and said in capsys.readouterr().out
    assert (
        cli.main(["preview", str(folder), str(tmp_path / "x.png")]) == 0 and said in capsys.readouterr().err
    )
    assert cli.main(["pack", str(folder), str(tmp_path / "out")]) == 0 and said in capsys.readouterr().err
    if how != "made":  # there the labels are names, and change with them
        assert cli.main(["index", str(folder)]) == 0 and ShardSet.open(folder).notes == ()


def test_names_that_come_later_are_no_change(make_shards) -> None:
    folder = make_shards([4]).folder
    (folder / "classes.json").unlink()
    build_index(folder)
    (folder / "classes.json").write_text('["a", "b", "c", "d"]')
    assert ShardSet.open(folder).notes == ()
