"""Checkpoints of transformers, timm and Google as a start, and runs as checkpoints for the first two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import write_weights
from golden import under
from jobs import Data, run, succeed
from references.made import made
from safetensors.torch import load_file, save_file

from data_tools.errors import UsageError, UserError
from finetune.export import export_folder
from finetune.formats import load_peer
from finetune.source import open_source


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("peers") / "small.safetensors")


@pytest.fixture(scope="module")
def written(trained: Path) -> dict[str, Path]:
    folders = {peer: trained.parent / peer for peer in ("hf", "timm")}
    for peer, folder in folders.items():
        assert export_folder(str(trained), str(folder), peer).path == folder
    return folders


def test_an_export_reads_back_as_the_same_model(trained: Path, written: dict[str, Path]) -> None:
    source = open_source(str(trained))
    images = torch.randn(2, 3, 16, 16)
    logits = source.load(torch.device("cpu"))(images)
    for folder in written.values():
        for path in (folder, folder / "model.safetensors"):
            found = open_source(str(path))
            assert torch.equal(found.load(torch.device("cpu"))(images), logits)
            assert found.facts["classes"] == source.facts["classes"]
            for key in ("mean", "std", "tile_size", "eval_resize", "eval_crop", "eval_resample"):
                assert getattr(found.data, key) == getattr(source.data, key), key


def test_transformers_files_are_as_it_writes_them(trained: Path, written: dict[str, Path]) -> None:
    config = json.loads((written["hf"] / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("vit", ["ViTForImageClassification"])
    assert (config["hidden_size"], config["patch_size"], config["image_size"]) == (24, 4, 16)
    assert list(config["id2label"].values()) == open_source(str(trained)).facts["classes"]
    assert config["problem_type"] == "single_label_classification"
    processor = json.loads((written["hf"] / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 20}
    assert (processor["crop_size"], processor["resample"]) == ({"height": 16, "width": 16}, 3)
    assert processor["image_mean"] == [0.4, 0.5, 0.6]
    names = load_file(written["hf"] / "model.safetensors").keys()
    assert "vit.encoder.layer.1.attention.attention.query.weight" in names
    assert {name.split(".")[0] for name in names} == {"vit", "classifier"}


def test_timms_files_are_as_its_hub_has_them(written: dict[str, Path]) -> None:
    config = json.loads((written["timm"] / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224"
    assert (config["model_args"]["embed_dim"], config["model_args"]["depth"]) == (24, 2)
    assert (config["pretrained_cfg"]["crop_pct"], config["num_classes"]) == (0.8, 3)
    assert "blocks.1.attn.qkv.weight" in load_file(written["timm"] / "model.safetensors")


def test_training_starts_from_them(written: dict[str, Path], data: Data, tmp_path: Path) -> None:
    recipe = tmp_path / "tuned.yaml"
    recipe.write_text(
        f"data: {{train: {data.train}, tile_size: 24, workers: 1}}\ntrain: {{steps: 1, batch_size: 12}}\n"
        "engine: {precision: fp32}\ntracking: {wandb: disabled}\n"
    )
    output = succeed("finetune", recipe, f"init={written['hf']}", f"run.dir={tmp_path}")
    assert "positions 4x4→6x6 (bilinear)" in output
    assert "backbone 30/30 tensors" in output


def test_googles_file_describes_itself(tmp_path: Path) -> None:
    for name in ("google_vit_npz", "google_hybrid_npz"):
        data = made(name)
        config = json.loads(str(data["config_json"]))
        weights = under(data, "npz/")
        images = torch.from_numpy(data["inputs/images_nhwc"]).permute(0, 3, 1, 2)
        np.savez(tmp_path / f"{name}.npz", **weights)
        source = open_source(str(tmp_path / f"{name}.npz"))
        expected = load_peer("google", config, weights)(images)
        assert torch.equal(source.load(torch.device("cpu"))(images), expected)
        assert source.data.mean == (0.5, 0.5, 0.5)


def test_a_transformers_processor_is_understood(written: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((written["hf"] / "config.json").read_text()) | {"problem_type": "regression"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(written["hf"] / "model.safetensors"), tmp_path / "model.safetensors")
    processor = {"size": {"height": 16, "width": 16}, "resample": 2, "rescale_factor": 1 / 127.5}
    processor |= {"image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(str(tmp_path))
    assert (source.data.eval_crop, source.data.eval_resample) == (False, "bilinear")
    assert source.data.mean == pytest.approx((0.5, 0.5, 0.5))
    assert source.data.std == pytest.approx((0.5, 0.5, 0.5))
    assert source.objective == "regression"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "longest_edge of .* are supported"),
        ({"size": {"max_height": 16, "max_width": 16}}, "max_height of .* are supported"),
        ({"do_pad": True}, "evaluation does not pad"),
        ({"image_mean": [0.5, 0.5]}, "2 numbers for three colours"),
        ({"size": {"shortest_edge": [20]}}, r"size\.shortest_edge is \[20\]"),
        ({"image_std": [0.5, "x", 0.5]}, r"image_std\.1 is 'x'"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 20}},
            "shortest_edge, but ViTImageProcessor does not crop .* CLIPImageProcessor",
        ),
    ],
)
def test_what_a_processor_does_beyond_evaluation_is_refused_by_name(
    said: dict, says: str, written: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(written["hf"], tmp_path / "hf")
    file = tmp_path / "hf/preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(UserError, match=says):
        open_source(str(tmp_path / "hf"))


@pytest.mark.parametrize("grey", [0.4, [0.4], [0.4] * 3])
def test_one_number_is_that_of_all_colours(grey: object, written: dict[str, Path], tmp_path: Path) -> None:
    for program, file, keys in (
        ("hf", "preprocessor_config.json", ("image_mean", "image_std")),
        ("timm", "config.json", ("mean", "std")),
    ):
        folder = shutil.copytree(written[program], tmp_path / program)
        content = json.loads((folder / file).read_text())
        content.get("pretrained_cfg", content).update(dict.fromkeys(keys, grey))
        (folder / file).write_text(json.dumps(content))
        data = open_source(str(folder)).data
        assert data.mean == data.std == pytest.approx((0.4,) * 3)


@pytest.mark.parametrize(
    ("fields", "peer", "says"),
    [
        ({"head": "mlp"}, "hf", "cannot express the two-layer head"),
        ({"registers": 2}, "hf", "cannot express registers"),
        ({"norm_eps": 1e-5}, "timm", "cannot express model.norm_eps=1e-05"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    fields: dict, peer: str, says: str, tmp_path: Path
) -> None:
    file = write_weights(tmp_path / "model.safetensors", **fields)
    with pytest.raises(UsageError, match=says):
        export_folder(str(file), str(tmp_path / "out"), peer)
    assert not list(tmp_path.glob("out*"))


def test_an_export_overwrites_no_folder(trained: Path, tmp_path: Path) -> None:
    done = run("finetune", "export", trained, tmp_path, "--format", "timm")
    assert done.returncode == 2
    assert "exists: choose" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "content", "code", "says"),
    [
        ({"model_type": "bert"}, None, 2, "config.json: neither timm's"),
        ("{", None, 3, "config.json: damaged"),
        ({"model_type": "vit"}, b"nothing", 3, "model.safetensors: damaged"),
        ({"model_type": "vit", "hidden_size": 30}, None, 2, "30"),
    ],
)
def test_bad_checkpoints_are_refused(
    config: object, content: bytes | None, code: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file({"vit.layernorm.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(Exception, match=says) as caught:
        open_source(str(tmp_path))
    assert caught.value.exit_code == code


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **{"embedding/kernel": np.array([{}], dtype=object)})
    with pytest.raises(Exception, match=r"bad\.npz: damaged or not an .npz file of plain arrays") as caught:
        open_source(str(tmp_path / "bad.npz"))
    assert caught.value.exit_code == 3
