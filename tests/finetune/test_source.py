"""Weights of strangers: a description that lies is one sentence, at once, and nothing is built from it."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import facts_of, rewrite, write_weights
from jobs import run

from data_tools.errors import UserError
from finetune.export import export_folder
from finetune.source import open_source

CPU = torch.device("cpu")
HUGE = 10**400


def short(value: Any) -> str:
    """The name of a test's value; that of one would have 400 digits."""
    return repr(value)[:30]


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with another value for `key`, in which dots lead into groups."""
    first, _, rest = key.partition(".")
    return values | {first: changed(values.get(first) or {}, rest, value) if rest else value}


def refused(path: Path) -> UserError:
    """The error of opening and loading weights, which must come at once and with little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        open_source(str(path)).load(CPU)
    assert time.perf_counter() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    text = str(caught.value)
    assert path.name in text and "\n" not in text and len(text) < 600
    assert caught.value.exit_code in (2, 3)
    return caught.value


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("strangers") / "small.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model.num_layers", value) for value in (10**6, -1, "2", 2.0, True, HUGE)),
        *(("model.embed_dim", value) for value in (10**9, HUGE, [24])),
        *(("model.norm_eps", value) for value in (float("nan"), float("inf"), -1e-6, "1e-6")),
        *(("num_classes", value) for value in (10**12, "7", None, 2**31 - 1, 1)),
        *((f"model.{key}", 10**9) for key in ("mlp_dim", "registers", "num_heads", "patch_size")),
        *(("preprocessing.tile_size", value) for value in (10**9, 0, "16")),
        ("preprocessing.max_tiles", 10**6),
        ("preprocessing.eval_resize", 10**9),
        ("preprocessing.std", [0.0, 1.0, 1.0]),
        ("preprocessing.mean", [float("nan")] * 3),
        ("preprocessing.mean", [0.5]),
        ("preprocessing.unheard_of", 1),
        ("model.unheard_of", 1),
        ("model.name", "vit_nothing"),
        ("model.backbone", {"depths": [10**6], "widths": [32]}),
        ("classes", ["a", "b", "c", "d"]),
        ("classes", "abc"),
        ("objective", "guessing"),
        ("model", None),
    ],
    ids=short,
)
def test_a_description_that_lies_is_refused(file: Path, tmp_path: Path, key: str, value: Any) -> None:
    copy = write_weights(tmp_path / "copy.safetensors")
    refused(rewrite(copy, changed(facts_of(), key, value)))


@pytest.mark.parametrize("text", ["", "null", "7", "{", "[" * 10**5, '{"a":' * 10**5, '{"model": {}}'])
def test_what_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(rewrite(write_weights(tmp_path / "copy.safetensors"), text)).exit_code == 3


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(24, dtype=torch.int64), "I64"),
        (torch.zeros(24, dtype=torch.bool), "BOOL"),
        (torch.full((24,), float("nan")), "no finite numbers"),
        (torch.zeros(25), "has shape [25]"),
        (torch.zeros(()), "has shape []"),
        (None, "lacks encoder.ln_post.bias"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(
    tmp_path: Path, value: torch.Tensor | None, says: str
) -> None:
    copy = write_weights(tmp_path / "copy.safetensors")
    text = str(refused(rewrite(copy, facts_of(), **{"encoder.ln_post.bias": value})))
    assert "encoder.ln_post.bias" in text and says in text


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    copy = write_weights(tmp_path / "copy.safetensors")
    rewrite(copy, changed(facts_of(), "model.num_layers", 900))
    done = run("finetune", "predict", copy, "any.png")
    assert done.returncode == 2
    assert "model.num_layers is 900, but the file holds" in done.stderr
    assert done.stderr.count("\n") == 1


CONFIGS = [
    *(("hf", "config.json", "hidden_size", value) for value in (HUGE, "24", 10**9, 24.0, None)),
    *(("hf", "config.json", "num_channels", value) for value in (10**9, 0)),
    *(("hf", "config.json", "image_size", value) for value in (10**9, [16], "16")),
    ("hf", "config.json", "num_hidden_layers", 10**6),
    ("hf", "config.json", "layer_norm_eps", float("nan")),
    ("hf", "config.json", "id2label", {"0": "a", "5": "b", "6": "c"}),
    ("hf", "config.json", "id2label", {"a": "0"}),
    ("hf", "config.json", "model_type", ["vit"]),
    ("hf", "preprocessor_config.json", "size", {"shortest_edge": 10**12}),
    ("hf", "preprocessor_config.json", "image_std", [0, 1, 1]),
    ("hf", "preprocessor_config.json", "rescale_factor", "1"),
    *(("timm", "config.json", f"model_args.{key}", 10**9) for key in ("embed_dim", "in_chans", "depth")),
    ("timm", "config.json", "model_args.img_size", [10**9, 10**9]),
    ("timm", "config.json", "model_args.num_heads", "2"),
    ("timm", "config.json", "model_args.mlp_ratio", 1e308),
    ("timm", "config.json", "pretrained_cfg.crop_pct", 0),
    ("timm", "config.json", "pretrained_cfg.input_size", 16),
    ("timm", "config.json", "architecture", 7),
]


@pytest.mark.parametrize(("program", "name", "key", "value"), CONFIGS, ids=short)
def test_a_configuration_of_another_program_that_lies_is_refused(
    file: Path, tmp_path: Path, program: str, name: str, key: str, value: Any
) -> None:
    folder = tmp_path / program
    export_folder(str(file), str(folder), program)
    given = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(changed(given, key, value)))
    refused(folder)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"model_type":' * 10**5, "null", '{"model_type": "vit"} x'])
def test_a_configuration_that_is_no_json_object_is_damaged(file: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "hf"
    export_folder(str(file), str(folder), "hf")
    (folder / "config.json").write_text(text)
    assert refused(folder).exit_code == 3


def test_an_honest_description_is_still_taken(file: Path) -> None:
    source = open_source(str(file))
    assert source.load(CPU)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert source.notes == ()
