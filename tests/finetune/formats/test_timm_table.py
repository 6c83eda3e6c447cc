"""timm's architectures by name: the table against timm itself, the page, and what is refused."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.timm_architectures import PAGE, read_timm, with_table
from exported import write_weights
from references import timm as reference
from references.timm_itself import timm_or_skip
from safetensors.torch import save_file

from data_tools.errors import UsageError
from finetune.export import export_folder
from finetune.formats import timm_arguments
from finetune.formats.folder import read_folder
from finetune.formats.timm_settings import timm_config
from finetune.formats.timm_table import ARCHITECTURES, EARLIER_NAMES, TABLE
from finetune.source import open_source

CLASSES = 5
RELATIVE = 1e-4  # of the largest logit


def arguments_of(name: str) -> dict[str, Any]:
    return timm_arguments.DEFAULTS | ARCHITECTURES[name]["arguments"]


def is_refused(arguments: dict[str, Any]) -> bool:
    try:
        timm_arguments.check(arguments)
    except ValueError:
        return True
    return False


REFUSED = [name for name, row in ARCHITECTURES.items() if is_refused(row["arguments"])]
KNOWN = [name for name in ARCHITECTURES if name not in REFUSED]
# Of those that compute the same but for their sizes, the one with the fewest heads.
SIZES = ("embed_dim", "depth", "patch_size", "img_size", "num_heads", "mlp_ratio")
KINDS = {
    json.dumps(
        {key: value for key, value in ARCHITECTURES[name]["arguments"].items() if key not in SIZES}
    ): name
    for name in sorted(KNOWN, key=lambda name: -arguments_of(name)["num_heads"])
}
NAMED = ("vit_base_patch16_gap_224", "vit_base_patch32_clip_quickgelu_224", "vit_xsmall_patch16_clip_224")


def small(name: str) -> dict[str, Any]:
    """Arguments that make an architecture small, and leave all that its name stands for as it is."""
    known = arguments_of(name)
    hybrid = "backbone" in known
    size = 32 * known["patch_size"] if known["patch_size"] > 1 else 64
    return {
        "img_size": size if hybrid else 2 * known["patch_size"],
        "depth": 2,
        "embed_dim": 4 * known["num_heads"],
    }


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def noise(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def made_up(name: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    """The arguments, the config.json and the weights of a small model of an architecture."""
    arguments = arguments_of(name) | small(name) | {"num_classes": CLASSES}
    config = {"architecture": name, "num_classes": CLASSES, "model_args": small(name)} | more
    return arguments, config, noise(reference.shapes(arguments))


def differ(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_each_architecture_computes_what_timm_computes(name: str, tmp_path: Path) -> None:
    timm = timm_or_skip()
    from timm.models._hub import save_config_for_hf

    model = timm.create_model(name, num_classes=CLASSES, **small(name)).eval()
    with torch.no_grad():
        for parameter, value in zip(
            model.parameters(), noise({n: p.shape for n, p in model.named_parameters()}).values(), strict=True
        ):
            parameter.add_(value / 2)
    save_config_for_hf(model, str(tmp_path / "config.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = small(name)
    images = torch.randn(2, 3, small(name)["img_size"], small(name)["img_size"])
    ours = read_folder(write(tmp_path, config, model.state_dict())).model
    with torch.no_grad():
        assert differ(ours(images), model(images)) < RELATIVE


def test_the_table_is_what_timms_entry_points_say() -> None:
    timm = timm_or_skip()
    version = json.loads(TABLE.read_text())["timm"]
    if timm.__version__ != version:
        pytest.skip(f"the table is of timm {version}, here is {timm.__version__}")
    table = json.loads(json.dumps(read_timm()))
    assert table["architectures"] == ARCHITECTURES
    assert table["earlier_names"] == EARLIER_NAMES


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text()
    assert with_table(page, ARCHITECTURES) == page
    assert all(f"`{name}`" in page for name in ARCHITECTURES)


def described(name: str) -> bool:
    """Whether the reference can compute it: it has no ResNet's depths here, and pools over registers."""
    known = arguments_of(name)
    registers_pooled = known["global_pool"] == "map" and known["reg_tokens"] > 0
    return "backbone" not in known and known["block_fn"] == "Block" and not registers_pooled


@pytest.mark.parametrize("name", sorted(filter(described, {*KINDS.values(), *NAMED})))
def test_a_name_alone_says_heads_activation_epsilon_and_pool(name: str, tmp_path: Path) -> None:
    arguments, config, weights = made_up(name)
    images = torch.randn(2, 3, arguments["img_size"], arguments["img_size"])
    ours = read_folder(write(tmp_path, config, weights)).model
    logits, _ = reference.forward(arguments, weights, images)
    with torch.no_grad():
        assert differ(ours(images), logits) < RELATIVE


@pytest.mark.parametrize("name", REFUSED)
def test_what_our_models_cannot_compute_is_refused_by_name(name: str, tmp_path: Path) -> None:
    _, config, weights = made_up("vit_tiny_patch16_224")
    folder = write(tmp_path, config | {"architecture": name}, weights)
    with pytest.raises(UsageError, match=f"timm's {name} cannot be computed: .* supported"):
        read_folder(folder)


@pytest.mark.parametrize(
    "name", ["vit_base_patch17_224", "swin_tiny_patch4_window7_224", "vit_base_patch16_rope_224", "resnet50"]
)
def test_an_unknown_name_is_refused_unless_the_file_says_all(name: str, tmp_path: Path) -> None:
    arguments, config, weights = made_up("vit_base_patch32_clip_quickgelu_224", architecture=name)
    folder = write(tmp_path, config, weights)
    with pytest.raises(UsageError, match=f"{name}.*lack patch_size, num_heads, global_pool, act_layer, norm"):
        read_folder(folder)
    says = ("patch_size", "num_heads", "pre_norm", "act_layer", "global_pool")
    config["model_args"] |= {key: arguments[key] for key in says} | {"norm_layer": "layernorm"}
    model = read_folder(write(tmp_path, config, weights)).model
    images = torch.randn(1, 3, arguments["img_size"], arguments["img_size"])
    logits, _ = reference.forward(arguments | {"norm_eps": 1e-6}, weights, images)
    with torch.no_grad():
        assert differ(model(images), logits) < RELATIVE


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"num_head": 4}, "'num_head' is no argument"),
        ({"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
        ({"attn_layer": "diff"}, "attn_layer='diff'"),
        ({"block_fn": "ResPostBlock"}, "block_fn='ResPostBlock'"),
        ({"global_pool": "avgmax"}, "global_pool='avgmax'"),
        ({"use_naflex": True}, "use_naflex=True"),
    ],
)
def test_arguments_that_ask_for_another_network_are_refused(
    said: dict[str, Any], says: str, tmp_path: Path
) -> None:
    _, config, weights = made_up("vit_tiny_patch16_224")
    config["model_args"] |= said
    with pytest.raises(UsageError, match=says):
        read_folder(write(tmp_path, config, weights))


def test_a_name_may_have_a_tag_or_be_an_earlier_one(tmp_path: Path) -> None:
    _, config, weights = made_up("vit_base_patch16_224")
    for name in ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224_in21k"):
        folder = write(tmp_path, config | {"architecture": name}, weights)
        assert read_folder(folder).model.config.num_heads == 12


def test_a_norm_layer_that_the_file_names_has_its_own_epsilon(tmp_path: Path) -> None:
    _, config, weights = made_up("vit_base_patch16_clip_224")
    assert read_folder(write(tmp_path, config, weights)).model.config.norm_eps == 1e-5
    config["model_args"]["norm_layer"] = "layernorm"
    assert read_folder(write(tmp_path, config, weights)).model.config.norm_eps == 1e-6


def test_a_pool_that_the_file_states_beside_its_arguments_is_taken_and_told(tmp_path: Path) -> None:
    arguments, config, _ = made_up("vit_tiny_patch16_224", global_pool="avg")
    arguments |= {"global_pool": "avg"}
    weights = noise(reference.shapes(arguments))
    ours, _, notes = read_folder(write(tmp_path, config, weights))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert differ(ours(images), reference.forward(arguments, weights, images)[0]) < RELATIVE
    assert "it pools by 'avg', as its config.json says" in "".join(notes)
    config["model_args"]["global_pool"] = "token"
    with pytest.raises(UsageError, match="'avg', but in model_args 'token'"):
        read_folder(write(tmp_path, config, weights))


def test_siglip_without_its_pool_leaves_the_pools_weights_aside(tmp_path: Path) -> None:
    _, config, _ = made_up("vit_base_patch16_siglip_gap_224")
    with_pool = arguments_of("vit_base_patch16_siglip_224") | config["model_args"] | {"num_classes": CLASSES}
    weights = noise(reference.shapes(with_pool))
    assert read_folder(write(tmp_path, config, weights)).model.config.pool == "mean"


def test_what_the_file_does_not_say_of_its_images_is_told(tmp_path: Path) -> None:
    _, config, weights = made_up("vit_base_patch16_clip_224")
    _, facts, notes = read_folder(write(tmp_path, config, weights))
    found = facts["preprocessing"]
    assert found["mean"] == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert found["eval_resize"] == math.floor(32 / 0.95)
    assert "config.json does not say interpolation, crop_pct, mean, std" in "".join(notes)


def test_names_that_are_not_one_for_each_output_are_left_out_and_told(tmp_path: Path) -> None:
    _, config, weights = made_up("vit_tiny_patch16_224", label_names=["cat", "dog"])
    found = read_folder(write(tmp_path, config, weights))
    assert found.facts["classes"] is None
    assert "it names 2 classes, but has 5: the names are not used" in found.notes


def test_an_early_config_json_has_everything_in_one_place(tmp_path: Path) -> None:
    _, config, weights = made_up("vit_tiny_patch16_224", labels=list("abcde"))
    config |= {"mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.5, "interpolation": "bilinear"}
    facts = read_folder(write(tmp_path, config, weights)).facts
    assert facts["classes"] == list("abcde")
    assert facts["preprocessing"]["mean"] == (0.1, 0.1, 0.1)
    assert facts["preprocessing"]["eval_resize"] == 64


@pytest.mark.parametrize("said", [{"crop_pct": 1.2}, {"crop_pct": -1}, {"crop_mode": "border"}])
def test_images_that_cannot_be_prepared_so_are_refused(said: dict[str, Any], tmp_path: Path) -> None:
    _, config, weights = made_up("vit_tiny_patch16_224", pretrained_cfg=said)
    with pytest.raises(UsageError, match="evaluation can"):
        read_folder(write(tmp_path, config, weights))


def test_timm_gets_back_every_short_side_that_is_written() -> None:
    config = {"norm_eps": 1e-6, "num_classes": 2, "embed_dim": 8, "global_pool": "token", "in_chans": 3}
    for size in (*range(14, 600, 14), *range(16, 1025, 16)):
        for short in range(size, 2 * size, 3 if size > 500 else 1):
            known = {"tile_size": size, "eval_resize": short, "mean": (0.5,) * 3, "std": (0.5,) * 3}
            facts = {"preprocessing": known, "classes": None, "num_classes": 2}
            share = timm_config(config, facts)["pretrained_cfg"]["crop_pct"]
            assert math.floor(size / share) == short  # timm.data.transforms_factory


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "mean", "final_norm": "pooled", "layer_scale": 0.1},
        {"pool": "map", "registers": 2, "qk_norm": True},
        {"pool": "map", "activation": "gelu_tanh", "qkv_bias": False, "pre_norm": True, "mlp_dim": 41},
        {"name": "hybrid_r_ti16", "patch_size": 1},
    ],
)
def test_timm_loads_what_is_exported(fields: dict[str, Any], tmp_path: Path) -> None:
    timm = timm_or_skip()
    file = write_weights(tmp_path / "model.safetensors", **fields)
    export_folder(str(file), str(tmp_path / "out"), "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        ours = open_source(str(file)).load(torch.device("cpu"))
        assert differ(ours(images), model(images)) < RELATIVE


def test_where_timm_is_missing_its_tests_say_so() -> None:
    if find_spec("timm") is None:
        with pytest.raises(pytest.skip.Exception, match="timm is not installed"):
            timm_or_skip()
