"""The checkpoint folder: complete, verified, kept in order."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, ClassVar

import pytest
import torch
from saved import VALUES, ranges, save

from data_tools.errors import DataError, UsageError
from pretrain.checkpoints.checkpoint import Checkpoint, complete, newest
from pretrain.checkpoints.pointers import read_best
from pretrain.checkpoints.retention import remove_incomplete, set_aside_damaged
from pretrain.checkpoints.saver import Saver
from pretrain.run.processes import ALONE, World


@pytest.mark.parametrize("background", [False, True])
def test_what_was_saved_is_read_back_bit_by_bit(tmp_path: Path, background: bool) -> None:
    found = Checkpoint(save(tmp_path, 7, background=background))
    found.verify()
    assert found.step == 7
    assert set(found.tensors) == set(VALUES)
    for key, value in VALUES.items():
        assert torch.equal(found.whole(key), value)
    assert torch.equal(found.read("model/a", 4, 17), VALUES["model/a"].view(-1)[4:17])
    assert (tmp_path / "latest").read_text() == "step-00000007\n"


def test_a_save_keeps_the_values_of_its_moment(tmp_path: Path) -> None:
    live = {"model/a": torch.zeros(1000)}
    saver = Saver(tmp_path, ALONE, background=True)
    saver.save(1, ranges(live), {"step": 1})
    live["model/a"].fill_(1.0)
    saver.finish()
    assert not Checkpoint(tmp_path / "step-00000001").whole("model/a").any()


@pytest.mark.parametrize("replicas", [1, 2, 3, 7])
def test_replicas_together_save_every_value_once(replicas: int) -> None:
    parts = [
        item.own_part
        for number in range(replicas)
        for item in ranges({"a": VALUES["model/a"]}, number, replicas)
    ]
    covered = [index for offset, data in parts for index in range(offset, offset + data.numel())]
    assert covered == list(range(30))


def test_load_refuses_another_model_by_the_first_difference(tmp_path: Path) -> None:
    found = Checkpoint(save(tmp_path, 1))
    with pytest.raises(
        UsageError, match=r"lacks model/b.*: set the model as the run's config.yaml has it, or another"
    ):
        found.load_into(ranges(VALUES | {"model/b": torch.zeros(2)}))
    with pytest.raises(UsageError, match=r"holds exp_avg/a"):
        found.load_into(ranges({key: VALUES[key] for key in ("model/a", "model/gate")}))
    with pytest.raises(UsageError, match=r"model/a has shape \[6, 5\], this configuration has \[5, 6\]"):
        found.load_into(ranges(VALUES | {"model/a": torch.zeros(5, 6)}))


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", "state.json", "manifest.json"])
def test_one_flipped_bit_in_any_file_is_found_and_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    content = bytearray((folder / name).read_bytes())
    for position in range(0, len(content), max(1, len(content) // 40)):
        content[position] ^= 4
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            Checkpoint(folder).verify()
        content[position] ^= 4
    (folder / name).write_bytes(content)
    Checkpoint(folder).verify()


def test_the_one_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    os.truncate(save(tmp_path, 2) / "rank-00000.safetensors", 50)
    found, damaged = newest(tmp_path, ALONE)
    assert found is not None and found.step == 1
    assert len(damaged) == 1 and "step-00000002: rank-00000.safetensors is damaged" in damaged[0]


def damage(checkpoint: Path, name: str = "rank-00000.safetensors") -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[-1] ^= 1
    (checkpoint / name).write_bytes(content)


class Pair(World):
    """Two processes, each a thread of this one."""

    meeting = Barrier(2)
    values: ClassVar[dict[int, Any]] = {}

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.meeting.wait()
        gathered = [self.values[0], self.values[1]]
        self.meeting.wait()
        return gathered


@pytest.mark.parametrize("name", ["rank-00000.json", "rank-00000.safetensors", "state.json", "manifest.json"])
def test_the_processes_together_verify_every_file(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2), name)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda rank: newest(tmp_path, Pair(rank, 2, torch.device("cpu"))), (0, 1)))
    for checkpoint, damaged in found:
        assert checkpoint is not None and checkpoint.step == 1
        assert len(damaged) == 1 and f"step-00000002: {name} is damaged" in damaged[0]


def test_a_renamed_copy_is_no_checkpoint_of_that_step(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-00000009")
    found, damaged = newest(tmp_path, ALONE)
    assert found is not None and found.path.name == "step-00000001"
    assert "step-00000009: its content is that of step 1" in damaged[0]
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "mine")
    assert Checkpoint(tmp_path / "mine").step == 1


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", "state.json", "manifest.json"])
def test_a_file_that_cannot_be_read_is_damage(unprivileged: Path, name: str) -> None:
    save(unprivileged, 1)
    (save(unprivileged, 2) / name).chmod(0)
    found, damaged = newest(unprivileged, ALONE)
    assert found is not None and found.step == 1
    assert damaged == [f"{unprivileged}/step-00000002: {name} cannot be read: Permission denied"]


def test_damaged_checkpoints_do_not_count_and_the_one_just_written_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (20, 25, 30):
        save(tmp_path, step)
    for step in (25, 30):
        damage(tmp_path / f"step-{step:08d}")
    (tmp_path / "step-00000030.damaged").mkdir()
    (tmp_path / "latest").write_bytes(b"\xff\0")
    found, _ = newest(tmp_path, ALONE)
    assert found is not None
    with caplog.at_level(logging.WARNING, "pretrain"):
        set_aside_damaged(tmp_path, found.path)
    assert "step-00000025 is damaged and set aside as step-00000025.damaged" in caplog.text
    assert (tmp_path / "latest").read_text() == "step-00000020\n"
    save(tmp_path, 24, keep=2)
    assert [path.name for path in complete(tmp_path)] == ["step-00000024", "step-00000020"]
    names = {path.name for path in tmp_path.glob("*.damaged*")}
    assert names == {"step-00000030.damaged", "step-00000030.damaged-2", "step-00000025.damaged"}


def test_an_old_one_that_is_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    shutil.move(save(root, 1), elsewhere)
    (root / "step-00000001").symlink_to(elsewhere)
    (root / "foo.tmp").symlink_to(elsewhere)
    assert remove_incomplete(root) == ["foo.tmp"]
    save(root, 2, keep=1)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-00000002"]
    Checkpoint(elsewhere).verify()


def test_an_old_one_that_cannot_be_deleted_is_a_warning(
    unprivileged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(unprivileged, 1).chmod(0o555)
    with caplog.at_level(logging.WARNING, "pretrain"):
        save(unprivileged, 2, keep=1)
        assert remove_incomplete(unprivileged) == []
        save(unprivileged, 3, keep=1)
    assert caplog.text.count("could not be deleted: Permission denied") == 2
    assert [path.name for path in complete(unprivileged)] == ["step-00000003"]


@pytest.mark.parametrize(
    "content",
    [
        '{"checkpoint": "step-00000001", "step": 1}',
        '{"checkpoint": "step-00000001", "step": 1, "score": "0.5"}',
        '{"checkpoint": "step-00000009", "step": 9, "score": 0.5}',
        '{"checkpoint": 5}',
        '{"checkpoint": "a\\u0000b", "step": 1, "score": 0.5}',
        "[" * 100_000,
        "[]",
        "",
    ],
)
def test_a_best_that_says_nothing_is_none(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "best").write_text(content)
    assert read_best(tmp_path) == {}
    assert Saver(tmp_path, ALONE, background=False).best_score == float("-inf")


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in complete(tmp_path)] == ["step-00000010", "step-00000002"]
    assert not list(tmp_path.glob("*.tmp"))


def test_an_incomplete_folder_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp").mkdir()
    assert [path.name for path in complete(tmp_path)] == ["step-00000001"]
    assert remove_incomplete(tmp_path) == ["step-00000002.tmp"]


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    saver = Saver(tmp_path, ALONE, background=True)
    saver.save(2, ranges({"model/a": torch.zeros(9)}), {"step": 2, "unwritable": object()})
    with pytest.raises(TypeError):
        saver.finish()
    assert [path.name for path in complete(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
