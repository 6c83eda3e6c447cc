"""Fine-tuning at a higher resolution: what is taken over, what starts anew, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from jobs import ROOT, Data, losses, run, succeed, write_recipe
from safetensors.torch import load_file, save_file

from finetune.source import METADATA_KEY, open_source
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.model.resize import resize_grid

FINETUNE = """
data: {{train: {train}, val: {val}, tile_size: 24, max_tiles: 4, workers: 1}}
optim: {{name: sgd, lr: 0.01, weight_decay: 0.0}}
train: {{steps: 2, batch_size: 12, log_every: 1}}
engine: {{kind: fsdp, precision: fp32}}
tracking: {{wandb: disabled}}
"""


@pytest.fixture(scope="module")
def pretrained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    recipe = write_recipe(root, data, "base.yaml")
    succeed("pretrain", recipe, f"run.dir={root}", "train.steps=8")
    return root / "base"


@pytest.fixture(scope="module")
def exported(pretrained: Path) -> Path:
    target = pretrained.parent / "base.safetensors"
    succeed("finetune", "export", pretrained, target, "--format", "safetensors")
    return target


@pytest.fixture(scope="module")
def recipe(pretrained: Path, data: Data) -> Path:
    path = pretrained.parent / "tuned.yaml"
    path.write_text(FINETUNE.format(train=data.train, val=data.val))
    return path


@pytest.fixture(scope="module")
def tuned(pretrained: Path, recipe: Path) -> tuple[Path, str]:
    """The folder of a fine-tuning run that saved its very first weights too, and what it printed."""
    settings = (
        f"init={pretrained}",
        f"run.dir={recipe.parent}",
        "checkpoint.every=1",
        "optim.lr=1e-12",
    )
    output = succeed("finetune", recipe, *settings, processes=2)
    return recipe.parent / "tuned", output


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return Checkpoint(complete(run_folder / "checkpoints")[0]).model()


def test_every_backbone_tensor_is_matched_and_listed(pretrained: Path, tuned: tuple[Path, str]) -> None:
    folder, output = tuned
    body = [name for name in weights(pretrained) if not name.startswith("head.")]
    assert f"backbone {len(body)}/{len(body)} tensors" in output
    assert "positions 4x4 in 4 tiles→6x6 in 4 tiles (bilinear)" in output
    assert "head re-initialised 3→3" in output
    origin = json.loads((folder / "init.json").read_bytes())
    assert set(origin) == set(weights(folder))
    assert {origin[name] for name in origin if name.startswith("head.")} == {"initialised"}
    assert all(origin[name] != "initialised" for name in body)


def test_the_weights_are_the_pretrained_ones(pretrained: Path, tuned: tuple[Path, str]) -> None:
    old, new = weights(pretrained), weights(tuned[0])
    for name in old:
        if name.startswith("head."):
            continue
        wanted = old[name]
        if name.endswith("token_pos_embedding.local"):
            wanted = resize_grid(wanted, (4, 4), (6, 6), prefix=1)
        elif name.endswith("token_pos_embedding.global_"):
            tiles = [resize_grid(tile, (4, 4), (6, 6), prefix=1) for tile in wanted.flatten(0, 1)]
            wanted = torch.stack(tiles).unflatten(0, wanted.shape[:2])
        assert torch.allclose(new[name], wanted, atol=1e-7), name


def test_the_head_starts_at_zero(tuned: tuple[Path, str]) -> None:
    assert set(weights(tuned[0])) >= {"head.weight", "head.bias"}
    assert losses(tuned[0])[1] == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-6)


def test_body_and_normalisation_are_those_of_the_source(pretrained: Path, tuned: tuple[Path, str]) -> None:
    source, result = open_source(str(pretrained)), open_source(str(tuned[0]))
    assert result.facts["model"]["embed_dim"] == source.facts["model"]["embed_dim"] == 24
    assert result.facts["preprocessing"]["mean"] == source.facts["preprocessing"]["mean"]
    assert result.facts["model"]["head"] == "linear"


def test_the_same_command_resumes(pretrained: Path, recipe: Path, tuned: tuple[Path, str]) -> None:
    output = succeed("finetune", recipe, f"init={pretrained}", f"run.dir={recipe.parent}", "optim.lr=1e-12")
    assert "is finished: step 2 of 2" in output
    assert "re-initialised" not in output


def test_a_run_goes_on_when_its_init_is_spelled_otherwise_moved_or_gone(
    pretrained: Path, recipe: Path, tuned: tuple[Path, str]
) -> None:
    folder = shutil.copytree(tuned[0], tuned[0].with_name("moved"))
    usual = (recipe, f"run.dir={recipe.parent}", "run.name=moved", "optim.lr=1e-12")
    spelled = f"init=./{os.path.relpath(pretrained, ROOT)}/"
    assert "is finished: step 2 of 2" in succeed("finetune", *usual, spelled)
    away = pretrained.rename(pretrained.with_name("away"))
    try:
        for steps, init in ((3, f"init={pretrained}"), (4, f"init={away}"), (5, "init=")):
            assert "resumed from" in succeed("finetune", *usual, f"train.steps={steps}", init)
        assert open_source(str(folder)).facts["model"]["embed_dim"] == 24
    finally:
        away.rename(pretrained)


def test_a_run_that_was_started_from_elsewhere_is_refused(
    pretrained: Path, exported: Path, recipe: Path, tuned: tuple[Path, str]
) -> None:
    done = run("finetune", recipe, f"init={exported}", f"run.dir={recipe.parent}")
    assert done.returncode == 2
    assert f"{pretrained} → {exported}" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["run", "checkpoint", "file"])
def test_init_takes_a_run_a_checkpoint_or_a_file(
    form: str, pretrained: Path, exported: Path, recipe: Path, tmp_path: Path
) -> None:
    path = {
        "run": pretrained,
        "checkpoint": complete(pretrained / "checkpoints")[0],
        "file": exported,
    }[form]
    output = succeed("finetune", recipe, f"init={path}", f"run.dir={tmp_path}", "train.steps=1")
    assert "head re-initialised" in output


@pytest.mark.parametrize(("tiles", "size"), [(1, 16), (1, 32), (2, 24), (6, 16)])
def test_another_number_of_tiles(
    tiles: int, size: int, pretrained: Path, recipe: Path, tmp_path: Path
) -> None:
    settings = (
        f"init={pretrained}",
        f"run.dir={tmp_path}",
        f"data.max_tiles={tiles}",
        f"data.tile_size={size}",
    )
    output = succeed("finetune", recipe, *settings, "init_resize=bicubic", "train.steps=1")
    assert "backbone" in output


def test_rotary_positions_go_to_another_size_and_number_of_tiles(
    recipe: Path, data: Data, tmp_path: Path
) -> None:
    base = write_recipe(tmp_path, data)
    blocks = ("model.position=rope2d", "model.norm=rms", "model.mlp=swiglu")
    succeed("pretrain", base, f"run.dir={tmp_path}", "run.name=base", "train.steps=2", *blocks)
    settings = (f"init={tmp_path}/base", f"run.dir={tmp_path}", "data.max_tiles=1", "train.steps=2")
    output = succeed("finetune", recipe, *settings)
    assert "rotary positions 4x4 in 4 tiles→6x6, head re-initialised" in output


def test_tiles_of_a_model_without_biases_stay(recipe: Path, data: Data, tmp_path: Path) -> None:
    base = write_recipe(tmp_path, data)
    succeed("pretrain", base, f"run.dir={tmp_path}", "run.name=base", "train.steps=1", "model.norm=rms")
    settings = (f"init={tmp_path}/base", "data.max_tiles=1")
    refuse(recipe, tmp_path, *settings, code=2, says=("last norm", "set data.max_tiles=4"))


def refuse(recipe: Path, tmp_path: Path, *settings: str, code: int, says: tuple[str, ...]) -> None:
    done = run("finetune", recipe, f"run.dir={tmp_path}/runs", *settings)
    assert done.returncode == code, done.stderr
    for text in says:
        assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/checkpoints/step-*"))


def test_one_renamed_key_is_refused_by_name(exported: Path, recipe: Path, tmp_path: Path) -> None:
    tensors = load_file(exported)
    tensors["encoder.layers.1.attn.qvk.weight"] = tensors.pop("encoder.layers.1.attn.qkv.weight")
    facts = {METADATA_KEY: json.dumps(open_source(str(exported)).facts)}
    save_file(tensors, tmp_path / "renamed.safetensors", metadata=facts)
    says = ("lacks encoder.layers.1.attn.qkv.weight", "holds encoder.layers.1.attn.qvk.weight")
    refuse(recipe, tmp_path, f"init={tmp_path}/renamed.safetensors", code=2, says=says)


def test_another_body_is_refused_by_name_and_shape(pretrained: Path, recipe: Path, tmp_path: Path) -> None:
    refuse(
        recipe,
        tmp_path,
        f"init={pretrained}",
        "model.mlp_dim=64",
        code=2,
        says=("mlp.fc1.weight", "[48, 24]"),
    )


def test_nothing_to_start_from(recipe: Path, tmp_path: Path) -> None:
    refuse(recipe, tmp_path, code=2, says=("init=RUN",))
    refuse(recipe, tmp_path, "init=/no/such/run", code=2, says=("/no/such/run",))


def test_a_truncated_checkpoint(pretrained: Path, recipe: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(complete(pretrained / "checkpoints")[0], copy)
    file = copy / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refuse(recipe, tmp_path, f"init={copy}", code=3, says=("rank-00000.safetensors is damaged",))


def test_a_file_of_someone_else(recipe: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    refuse(recipe, tmp_path, f"init={tmp_path}/other.safetensors", code=2, says=("other.safetensors",))
