"""Files as they come from others: in parts, with prefixes, as pickles, by their names on the hub."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import write_weights
from jobs import run, succeed
from safetensors.torch import load_file, save_file

from data_tools.errors import DataError, UsageError
from finetune.export import export_folder
from finetune.formats.hub import is_hub_name
from finetune.formats.unpickle import convert
from finetune.source import open_source

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 16, 16)


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.fixture(params=["hf", "timm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of transformers or timm, of a small model whose logits `logits` gives."""
    file = write_weights(tmp_path / "small.safetensors")
    export_folder(str(file), str(tmp_path / "theirs"), request.param)
    return tmp_path / "theirs"


def logits(path: Path | str) -> torch.Tensor:
    return open_source(str(path)).load(CPU)(IMAGES)


def in_parts(folder: Path) -> Path:
    """The same checkpoint in two files and an index of them."""
    weights = load_file(folder / "model.safetensors")
    names, files = sorted(weights), {}
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        name = f"model-0000{part}-of-00002.safetensors"
        save_file({key: weights[key] for key in chosen}, folder / name)
        files |= dict.fromkeys(chosen, name)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


def test_a_checkpoint_in_parts_is_the_same_model(folder: Path) -> None:
    wanted = logits(folder)
    index = in_parts(folder)
    assert torch.equal(logits(folder), wanted)
    assert torch.equal(logits(index), wanted)
    with pytest.raises(UsageError, match=r"one of the 2 files of a checkpoint: give the folder"):
        open_source(str(folder / "model-00001-of-00002.safetensors"))


@pytest.mark.parametrize("wrong", ["missing", "mixed up", "outside", "pickle", "empty", "text"])
def test_parts_that_do_not_fit_their_index_are_damaged(folder: Path, wrong: str) -> None:
    index = in_parts(folder)
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    if wrong == "missing":
        (folder / "model-00002-of-00002.safetensors").unlink()
    elif wrong == "mixed up":
        content["weight_map"]["another"] = content["weight_map"][first]
    elif wrong in ("outside", "pickle"):
        content["weight_map"][first] = {"outside": "../small.safetensors", "pickle": "model.bin"}[wrong]
    else:
        content["weight_map"] = {"empty": {}, "text": {first: 3}}[wrong]
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"model") as caught:
        open_source(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "module._orig_mod."])
def test_a_prefix_is_removed_where_everything_then_fits_and_said(folder: Path, prefix: str) -> None:
    wanted, file = logits(folder), folder / "model.safetensors"
    weights = load_file(file)
    save_file({prefix + name: value for name, value in weights.items()}, file)
    found = open_source(str(folder))
    assert torch.equal(found.load(CPU)(IMAGES), wanted)
    assert any(repr(prefix) in note and "removed" in note for note in found.notes)
    # Where something would be left over, nothing is removed.
    save_file({prefix + name: value for name, value in weights.items()} | {"other": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match=str(folder)):
        open_source(str(folder))


def test_two_tensors_never_become_one_by_a_prefix(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {f"module.{name}": value + 1 for name, value in weights.items()}, file)
    with pytest.raises(UsageError, match="module"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("name", "modern"),
    [("pytorch_model.bin", True), ("model.pth", False), ("model.pth.tar", True), ("x.ckpt", False)],
)
def test_a_pickle_is_named_and_the_command_in_the_error_makes_weights_of_it(
    folder: Path, name: str, modern: bool
) -> None:
    wanted = logits(folder)
    content = {"state_dict": load_file(folder / "model.safetensors"), "epoch": 3, "args": Namespace(lr=0.1)}
    content["best"] = np.float64(0.5)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / name, _use_new_zipfile_serialization=modern)
    for path in (folder, folder / name):
        with pytest.raises(UsageError, match=f"{name}: a pickle") as caught:
            open_source(str(path))
    command = shlex.split(str(caught.value).split("first, ")[1].split(" , and give")[0])
    assert command[:4] == ["python", "-m", "finetune", "convert"]
    said = succeed("finetune", *command[3:])
    assert "'state_dict'" in said
    assert torch.equal(logits(folder), wanted)


def test_a_folder_with_nothing_but_a_pickle_gets_the_command_too(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.bin")
    with pytest.raises(UsageError, match=r"finetune convert .*model\.bin"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("start", [0x280, 0x480])
def test_a_safetensors_file_is_never_taken_for_a_pickle(tmp_path: Path, start: int) -> None:
    """Its first bytes are the length of its header, which may be those of a pickle."""
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    file = tmp_path / "a.safetensors"
    file.write_bytes(start.to_bytes(8, "little") + text.ljust(start) + bytes(4))
    with pytest.raises(UsageError, match="not a file that"):
        open_source(str(file))


def test_converting_runs_no_code(tmp_path: Path) -> None:
    file = tmp_path / "bad.bin"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"state_dict": {"a": torch.zeros(1)}, "x": Canary(tmp_path / "ran")}, file)
        done = run("finetune", "convert", file, tmp_path / "out.safetensors")
        assert done.returncode == 3 and done.stderr.count("\n") == 1
        assert "bad.bin: " in done.stderr
        assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("out*"))


def test_converting_never_chooses_among_weights(tmp_path: Path) -> None:
    file, out = tmp_path / "two.pth", tmp_path / "out.safetensors"
    weights = {"a": torch.ones(2, 2).T, "steps": torch.tensor(3)}
    torch.save({"model": weights, "model_ema": {"a": torch.zeros(2, 2)}}, file)
    with pytest.raises(UsageError, match=r"model, model_ema: choose one with --key"):
        convert([str(file)], str(out))
    with pytest.raises(UsageError, match=r"'ema'; it has model, model_ema"):
        convert([str(file)], str(out), "ema")
    done = convert([str(file)], str(out), "model")
    assert (done.tensors, done.left_out) == (1, ("steps",))
    assert torch.equal(load_file(out)["a"], torch.ones(2, 2))
    with pytest.raises(UsageError, match="exists"):
        convert([str(file)], str(out), "model")


def test_parts_of_a_pickled_checkpoint_become_one_file(tmp_path: Path) -> None:
    for part, name in enumerate("ab"):
        torch.save({name: torch.full((2,), float(part))}, tmp_path / f"{part}.bin")
    convert([str(tmp_path / "0.bin"), str(tmp_path / "1.bin")], str(tmp_path / "out.safetensors"))
    assert load_file(tmp_path / "out.safetensors")["b"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x04", pickle.dumps([1, 2]), pickle.dumps(None)])
def test_what_holds_no_weights_is_not_converted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pth") as error:
        convert([str(tmp_path / "a.pth")], str(tmp_path / "out.safetensors"))
    assert "weights_only" not in str(error.value), "torch's advice would run the code that a pickle holds"


def test_a_name_on_the_hub_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = ("google/vit-base-patch16-224", "timm/vit_base_patch16_224.augreg_in21k", "hf-hub:timm/vit")
    assert all(map(is_hub_name, names))
    paths = (
        "runs/base",
        "/no/such/run",
        "./a/b",
        "../a/b",
        "a/b/c",
        "name",
        "other/model.safetensors",
        "a/b.npz",
    )
    assert not any(map(is_hub_name, paths))


def test_without_the_hubs_library_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    name = "google/vit-base-patch16-224"
    with pytest.raises(UsageError, match=rf"hf download {name} --local-dir FOLDER") as caught:
        open_source(name)
    assert "pip install huggingface_hub" in str(caught.value)


def test_a_name_on_the_hub_is_downloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the hub's library, which copies from a folder as that does from the network."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/huggingface_hub.py").write_text(
        "from fnmatch import fnmatch\nfrom pathlib import Path\nimport shutil\n"
        "def snapshot_download(repo_id, *, allow_patterns):\n"
        f"    source, target = Path({str(tmp_path)!r}) / repo_id, Path({str(tmp_path / 'cache')!r})\n"
        "    target.mkdir()\n"
        "    for path in source.iterdir():\n"
        "        if any(fnmatch(path.name, pattern) for pattern in allow_patterns):\n"
        "            shutil.copy(path, target)\n"
        "    return str(target)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "library")
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.chdir(Path(__file__).parent)
    (tmp_path / "owner").mkdir()
    shutil.copytree(folder, tmp_path / "owner/name")
    (tmp_path / "owner/name/pytorch_model.bin").write_bytes(b"large")
    assert torch.equal(logits("owner/name"), logits(folder))
    assert not (tmp_path / "cache/pytorch_model.bin").exists()
    with pytest.raises(UsageError, match="could not be had from the Hugging Face hub"):
        open_source("owner/another")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "owner/name/model.safetensors").unlink()
    with pytest.raises(
        UsageError, match=r"no safetensors on the .* hub; .*hf download owner/name --local-dir"
    ):
        open_source("https://huggingface.co/owner/name")
    monkeypatch.delitem(sys.modules, "huggingface_hub")


@pytest.mark.parametrize("kind", ["bomb", "shape", "integers", "names", "broken"])
def test_hostile_arrays_of_google_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.npz"
    if kind == "bomb":
        np.savez_compressed(file, **{"embedding/kernel": np.zeros(2 * 10**7, np.float32)})
    elif kind == "shape":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif kind == "integers":
        np.savez(file, a=np.zeros(3, np.int64))
    elif kind == "names":
        np.savez(file, a=np.zeros(3, np.float32))
    else:
        file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises((DataError, UsageError), match=r"bad\.npz") as caught:
        open_source(str(file))
    assert "\n" not in str(caught.value)


def test_weights_under_another_name_are_named(folder: Path) -> None:
    for name in ("pytorch_model.safetensors", "pytorch_model.bin"):
        next(folder.glob("*model*")).rename(folder / name)
        with pytest.raises(
            DataError, match=rf"name the file of the weights, init={re.escape(str(folder))}/{name}"
        ):
            open_source(str(folder))
        assert open_source(str(folder / name)).shapes


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2, 2), {1: torch.ones(2)}, 7, None])
def test_a_pickle_without_names_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(DataError, match=r"x\.pth: it holds no weights by name"):
        convert([str(tmp_path / "x.pth")], str(tmp_path / "y.safetensors"))


@pytest.mark.parametrize(
    "init", ["https://u:s3cret@host/x.safetensors?sig=s3cret", "s3://b/model.safetensors"]
)
def test_weights_behind_a_url_are_to_be_downloaded(init: str) -> None:
    with pytest.raises(UsageError, match="weights are not read from URLs") as caught:
        open_source(init)
    assert "s3cret" not in str(caught.value)
