"""The checkpoint folder: complete, verified, safe to read from strangers."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from data_tools.errors import DataError, UsageError
from pretrain.engine.checkpoint import Checkpoint, complete, digest_of, newest, remove_incomplete
from pretrain.engine.ranges import LocalRange
from pretrain.engine.saver import Retention, Saver
from pretrain.engine.world import ALONE

VALUES = {"model/a": torch.randn(6, 5), "model/gate": torch.randn(1), "exp_avg/a": torch.randn(6, 5)}


def ranges(values: dict[str, torch.Tensor], replica: int = 0, replicas: int = 1) -> list[LocalRange]:
    return [
        LocalRange(key, tuple(value.shape), 0, value.view(-1), replica, replicas)
        for key, value in values.items()
    ]


def save(root: Path, step: int, keep: int = 0, background: bool = False) -> Path:
    saver = Saver(root, ALONE, background=background, retention=Retention(keep))
    saver.save(step, ranges(VALUES), {"step": step})
    saver.finish()
    return root / f"step-{step:08d}"


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
    with pytest.raises(UsageError, match=r"lacks model/b"):
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


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "manifest.json", "state.json"])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_run(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(DataError):
        Checkpoint(folder).verify()
    with pytest.raises(DataError):
        Checkpoint(folder).whole("model/a")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("sha256")
    body["files"][name] = body["files"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps({"sha256": digest_of(body), **body}))
    with pytest.raises(DataError, match="outside its folder"):
        Checkpoint(folder)


def test_a_header_of_10_gb_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    content = bytearray((folder / "rank-00000.safetensors").read_bytes())
    content[:8] = (10 * 2**30).to_bytes(8, "little")
    (folder / "rank-00000.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"rank-00000\.safetensors is damaged"):
        Checkpoint(folder).whole("model/a")
