"""Every hostile shard, with the outcome that is asked for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hostile_shards import READ, REFUSED
from jobs import ROOT
from sample_files import picture, write_tar

from data_tools.augment.transforms import EvalTransform
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, Share, TrainStream
from data_tools.errors import DataError
from data_tools.shards.index import build_index
from data_tools.shards.labels import LabelRules
from data_tools.shards.shard_set import ShardSet
from data_tools.verify import verify

MAX_PIXELS = 67_108_864
LENIENT = LabelRules(allow_unlabelled=True)

SAMPLES = {
    "symlink_dir_then_file": 1,
    "device_fifo": 1,
    "traversal": 2,
    "absolute_path": 1,
    "backslash_path": 1,
    "directories_and_pax": 2,
    "gnu_long_name": 1,
    "pickle_member": 4,
    "two_labels_one_key": 2,
    "label_with_newline": 2,
    "label_out_of_range": 2,
    "keys_with_dots_and_case": 1,
    "same_name_in_two_dirs": 2,
    "bad_images_inside": 5,
    "all_bad": 4,
    "pad_member_names": 2,
}


def lay_out(hostile: Path, name: str, folder: Path) -> Path:
    """A folder with one hostile shard and four classes."""
    folder.mkdir(exist_ok=True)
    shutil.copy(hostile / "shards" / (name if "." in name else f"{name}.tar"), folder)
    (folder / "classes.json").write_text(json.dumps(list("abcd")))
    return folder


def test_every_hostile_shard_is_tested(hostile: Path) -> None:
    names = {path.name.removesuffix(".tar") for path in (hostile / "shards").iterdir()}
    assert names == REFUSED.keys() | READ.keys() and len(names) == 43


def test_the_made_shards_end_as_those_of_the_reference_data(
    hostile: Path, hostile_reference: Path, tmp_path: Path
) -> None:
    def outcome(source: Path, name: str) -> object:
        folder = lay_out(source, name, tmp_path / f"{source.name}-{name}")
        try:
            summary = build_index(folder, rules=LENIENT)
        except DataError as error:
            return re.sub(r"\d+", "N", str(error).replace(str(folder), ""))
        shards = ShardSet.open(folder)
        labels = [(shards.key(i)[:80], shards.label(i)) for i in range(len(shards))]
        return labels, [str(problem) for problem in summary.problems], summary.ignored

    for name in REFUSED.keys() | READ.keys():
        assert outcome(hostile, name) == outcome(hostile_reference, name), name


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_shard_is_refused_by_name(name: str, hostile: Path, tmp_path: Path) -> None:
    folder = lay_out(hostile, name, tmp_path / "x")
    with pytest.raises(DataError, match=REFUSED[name]) as error:
        build_index(folder)
    assert name in str(error.value) and not (folder / "shardindex.json").exists()


@pytest.mark.parametrize("name", READ)
def test_good_samples_are_read_and_bad_ones_named_and_counted(
    name: str, hostile: Path, tmp_path: Path
) -> None:
    wanted, reasons, ignored = READ[name]
    folder = lay_out(hostile, name, tmp_path / "x")
    summary = build_index(folder, rules=LENIENT)
    shards = ShardSet.open(folder)
    found = [str(problem) for problem in summary.problems]
    assert all(any(reason in text for text in found) for reason in reasons), found
    assert len(found) >= len(reasons) and (reasons or not found)
    assert all(text.startswith(f"{name}.tar:") for text in found)
    assert summary.ignored == ignored
    assert summary.samples == len(shards) == (len(wanted) if wanted else SAMPLES[name])
    if wanted:
        assert {shards.key(i): shards.label(i) for i in range(len(shards))} == wanted
    assert all(0 <= shards.label(i) < 4 for i in range(len(shards)))
    problems = verify(folder, decode_images=False, max_pixels=MAX_PIXELS, threads=1)
    assert [str(problem) for problem in problems] == found


@pytest.mark.parametrize("name", ["labels_not_integer_or_out_of_range", "label_out_of_range"])
def test_a_label_that_is_no_class_is_an_error_that_names_it(name: str, hostile: Path, tmp_path: Path) -> None:
    folder = lay_out(hostile, name, tmp_path / "x")
    with pytest.raises(DataError, match=rf"{name}\.tar:\w+: label .*(\n.*)*--allow-unlabelled|--allow-unl"):
        build_index(folder)
    assert not (folder / "shardindex.json").exists()


@pytest.mark.parametrize("name", ["directories_and_pax", "gnu_long_name", "same_name_in_two_dirs", "control"])
def test_legal_shards_hand_out_whole_images(name: str, hostile: Path, tmp_path: Path) -> None:
    folder = lay_out(hostile, name, tmp_path / "x")
    build_index(folder)
    assert not list(verify(folder, decode_images=True, max_pixels=MAX_PIXELS, threads=1))


def stream(shards: ShardSet) -> TrainStream:
    transform = EvalTransform(32, 1)
    decoding = Decoding(MAX_PIXELS, 32, threads=2)
    return TrainStream(shards, Order(0, len(shards), 8), transform, Share(8), decoding, batch_size=8)


def test_bad_images_among_good_ones_are_counted_and_replaced(hostile: Path, tmp_path: Path) -> None:
    folder = lay_out(hostile, "bad_images_inside", tmp_path / "x")
    build_index(folder)
    problems = list(verify(folder, decode_images=True, max_pixels=MAX_PIXELS, threads=1))
    assert len(problems) == 4 and len({problem.key for problem in problems}) == 4
    bad = {problem.key for problem in problems} - {"s0003"}  # empty, so it is not in the index
    shards = ShardSet.open(folder)
    with stream(shards) as batches:
        batch = next(batches)
    assert len(batch) == 8 and {sample.key for sample in batch.bad} == bad
    assert all(shards.key(int(sample)) not in bad for sample in batch.sample)


def test_a_shard_without_a_good_image_ends_the_stream(hostile: Path, tmp_path: Path) -> None:
    folder = lay_out(hostile, "all_bad", tmp_path / "x")
    build_index(folder)
    assert len(list(verify(folder, decode_images=True, max_pixels=MAX_PIXELS, threads=1))) == 4
    with stream(ShardSet.open(folder)) as batches, pytest.raises(DataError, match="too many unreadable"):
        next(batches)


def test_all_damaged_shards_are_named_at_once(hostile: Path, tmp_path: Path) -> None:
    for name in ("control", "trunc_in_member", "empty"):
        lay_out(hostile, name, tmp_path)
    with pytest.raises(DataError, match=r"2 of 3 shards cannot be used:\n.*empty\.tar.*\n.*trunc_in_member"):
        build_index(tmp_path)


CHILD = """
import os, resource, sys
from pathlib import Path
import data_tools.verify
from data_tools.errors import UserError
from data_tools.shards.index import build_index
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        build_index(folder)
        list(data_tools.verify.verify(folder, decode_images=True, max_pixels=10**6, threads=2))
    except UserError:
        pass
assert "VIT_HOSTILE_PICKLE_RAN" not in os.environ
print(peak() - before)
"""


def test_hostile_shards_take_no_memory_run_nothing_and_write_nothing_outside(
    hostile: Path, tmp_path: Path
) -> None:
    work = tmp_path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    for name in REFUSED.keys() | READ.keys():
        lay_out(hostile, name, work / name.removesuffix(".tar"))
    before = {path for path in tmp_path.rglob("*") if work not in path.parents}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(work)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "PICKLE" not in done.stdout + done.stderr, done.stderr
    assert int(done.stdout) < 100  # MiB more than before the first shard
    assert {path for path in tmp_path.rglob("*") if work not in path.parents} == before
    written = {path.name for path in work.rglob("*") if path.suffix != ".tar" and path.is_file()}
    assert written <= {"classes.json", "shardindex.json", "shardindex.offsets.npy"} | {
        "control.tar.gz",
        "gzip_bomb.tar.gz",
    }


@pytest.mark.parametrize("size", ["9" * 5000, "-5", "1e3"])
def test_an_impossible_size_in_an_extended_header_is_refused(tmp_path: Path, size: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"size": size}
        tar.addfile(member)
    with pytest.raises(DataError, match=r"x\.tar has a member of impossible size"):
        build_index(tmp_path)


def test_a_label_beyond_all_classes_is_left_out(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("a.cls", b"0"), ("b.jpg", picture(2)), ("b.cls", b"999999999")]
    write_tar(tmp_path / "x.tar", [*members, ("c.jpg", picture(3)), ("c.json", b'{"label": 1000000}')])
    with pytest.raises(DataError, match=r"2 labels are no class: .*\n.*x\.tar:b: label 999999999"):
        build_index(tmp_path)
    summary = build_index(tmp_path, rules=LENIENT)
    assert summary.samples == 1 and [problem.key for problem in summary.problems] == ["b", "c"]
    assert "is more than 1,000,000 classes" in summary.problems[0].reason


def test_side_files_inside_of_a_shard_and_beside_it_are_no_samples(tmp_path) -> None:
    names = ["./x.jpg", "./._x.jpg", "@eaDir/x.jpg/THUMB.jpg", "__MACOSX/y.jpg", "d/.thumbs/z.jpg"]
    write_tar(tmp_path / "a.tar", [*((name, picture(1)) for name in names), ("./x.cls", b"0")])
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    summary = build_index(tmp_path)
    assert (summary.samples, summary.shards, summary.problems) == (1, 1, ())
    assert summary.ignored == 4


@pytest.mark.parametrize("first", [True, False])
def test_masks_beside_an_image_are_no_fault_of_its_sample(tmp_path, first: bool) -> None:
    masks = [("x.input.jpg", picture(2)), ("x.seg.png", picture(3, kind="PNG"))]
    image = [("x.jpg", picture(1)), ("x.cls", b"0")]
    write_tar(tmp_path / "a.tar", [*masks, *image] if first else [*image, *masks])
    summary = build_index(tmp_path)
    assert (summary.samples, summary.problems, summary.ignored) == (1, (), 2)
    assert ShardSet.open(tmp_path).read(0) == picture(1)
    write_tar(
        tmp_path / "a.tar", [*image, ("y.input.jpg", picture(4)), ("y.cls", b"1"), ("x.2.jpg", picture(5))]
    )
    problems = {problem.key: problem.reason for problem in build_index(tmp_path).problems}
    assert problems.keys() == {"x", "y"} and "the first dot of y.input.jpg" in problems["y"]
