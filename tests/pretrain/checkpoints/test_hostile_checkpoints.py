"""Checkpoints of strangers: whatever does not fit is damage, nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import save

from data_tools.errors import DataError
from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.manifest import digest_of, size_and_sha256


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


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest, and let its sha256 fit."""
    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("sha256")
    edit(body)
    (folder / "manifest.json").write_text(json.dumps({"sha256": digest_of(body), **body}))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/b", "", "a\0b", "\ud800", "a" * 5000])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    change(folder, lambda body: body["files"].update({name: body["files"]["state.json"]}))
    with pytest.raises(DataError, match="outside its folder"):
        Checkpoint(folder)


FILE = "rank-00000.safetensors"


@pytest.mark.parametrize(
    "edit",
    [
        {"tensors": []},
        {"tensors": None},
        {"tensors": {"model/a": 5}},
        {"files": ["state.json"]},
        {"files": {"state.json": 5}},
        {"files": {"state.json": {"size": float("nan"), "sha256": "0" * 64}}},
        {"step": "1"},
        {"step": 2},
        {"step": None},
    ],
)
def test_a_manifest_of_other_types_is_damage(tmp_path: Path, edit: dict[str, Any]) -> None:
    folder = save(tmp_path, 1)
    change(folder, lambda body: body.update(edit))
    with pytest.raises(DataError, match=r"is damaged"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "edit",
    [
        *({"shape": shape} for shape in ([-6, 5], [6.0, 5], [float("nan")], "abc", [10**13], [6], None)),
        {"shape": [1] * 100_000},
        {"pieces": 5},
        {"pieces": [[0, 10]]},
        {"pieces": [[0.0, 30.0, FILE]]},
        {"pieces": [[0, 30, [FILE]]]},
        {"pieces": [[0, 30, "state.json"]]},
        {"pieces": [[0, 30, "rank-00001.safetensors"]]},
        {"pieces": [[-10, 40, FILE]]},
        {"pieces": [[0, 30, FILE], [0, 30, FILE]]},
        {"pieces": [[0, 15, FILE], [15, 15, FILE]]},
        {"pieces": [[1, 29, FILE]]},
        {"pieces": []},
    ],
)
def test_pieces_that_are_not_the_tensor_once_are_damage(tmp_path: Path, edit: dict[str, Any]) -> None:
    folder = save(tmp_path, 1)
    change(folder, lambda body: body["tensors"]["model/a"].update(edit))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        Checkpoint(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"sha256": 1, "a":' + "[" * 100_000, "[1]", ""])
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_of_another_kind_is_damage(tmp_path: Path, name: str, content: str) -> None:
    folder = save(tmp_path, 1)
    (folder / name).write_text(content)
    if name == "state.json":
        change(folder, lambda body: body["files"].update({name: size_and_sha256(folder / name)}))
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "state", [{}, {"step": "1"}, {"step": 1, "model": []}, {"step": 1, "optimizer_steps": {"a": "b"}}]
)
def test_a_state_of_other_types_is_damage(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").write_text(json.dumps(state))
    change(folder, lambda body: body["files"].update({"state.json": size_and_sha256(folder / "state.json")}))
    with pytest.raises(DataError, match=r"state\.json is damaged: its \w+ is"):
        Checkpoint(folder)


def test_what_the_state_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step-00000001: state\.json lacks optimizer"):
        Checkpoint(save(tmp_path, 1)).state["optimizer"]


def without_a(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model/a")


def as_int8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model/a"] = tensors["model/a"].to(torch.int8)


def shorter(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model/a"] = tensors["model/a"][:-1].clone()


@pytest.mark.parametrize("edit", [without_a, as_int8, shorter])
def test_a_file_with_other_tensors_than_the_manifest_says_is_damage(
    tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    folder = save(tmp_path, 1)
    tensors = load_file(folder / FILE)
    edit(tensors)
    save_file(tensors, folder / FILE)
    change(folder, lambda body: body["files"].update({FILE: size_and_sha256(folder / FILE)}))
    with pytest.raises(DataError, match=rf"{FILE} is damaged: .*'model/a'"):
        Checkpoint(folder).verify()
    with pytest.raises(DataError, match=rf"{FILE} is damaged"):
        Checkpoint(folder).whole("model/gate")


@pytest.mark.parametrize("name", [FILE, "state.json", "manifest.json"])
def test_a_file_that_is_a_link_or_a_pipe_is_damage(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 1)
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{name} is damaged: a link"):
        Checkpoint(folder).verify()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match=rf"{name} is damaged: a link"):
        Checkpoint(folder).verify()


def test_a_header_of_10_gb_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    content = bytearray((folder / "rank-00000.safetensors").read_bytes())
    content[:8] = (10 * 2**30).to_bytes(8, "little")
    (folder / "rank-00000.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"rank-00000\.safetensors is damaged"):
        Checkpoint(folder).whole("model/a")
