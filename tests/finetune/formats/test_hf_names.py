"""transformers' models in memory, and the arguments that peers have and have not."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.formats import load_peer, to_peer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


class Config:
    """What load_peer needs of an object of transformers' ViTConfig."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def to_dict(self) -> dict[str, Any]:
        return dict(self.given)


@pytest.fixture
def files(small: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A configuration and weights of a classifier, as transformers' files have them."""
    return to_peer(small(head="linear", max_tiles=1), "hf_vit")


def in_memory(name: str) -> str:
    """The name that transformers 5 has in memory; its own table of renamings, in the same order."""
    for pattern, new in (
        (r"encoder\.layer\.", "layers."),
        ("attention.query", "q_proj"),
        ("attention.key", "k_proj"),
        ("attention.value", "v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ):
        name = re.sub(pattern, new, name)
    return name


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_names_of_memory_are_those_of_files(files: tuple[dict[str, Any], dict], prefix: str) -> None:
    config, weights = files
    expected = load_peer("hf_vit", config, weights).state_dict()
    renamed = {in_memory(name).replace("vit.", prefix): value for name, value in weights.items()}
    assert f"{prefix}layers.0.attention.q_proj.weight" in renamed
    found = load_peer("hf_vit", Config(**config), renamed).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_messages_name_what_the_caller_gave(files: tuple[dict[str, Any], dict]) -> None:
    config, weights = files
    renamed = {in_memory(name): value for name, value in weights.items()}
    missing = {name: value for name, value in renamed.items() if name != "vit.layers.1.mlp.fc2.bias"}
    with pytest.raises(ValueError, match=r"lack 'vit\.layers\.1\.mlp\.fc2\.bias'"):
        load_peer("hf_vit", config, missing)
    with pytest.raises(ValueError, match=r"hold 'vit\.layers\.1\.mlp\.fc3\.bias'"):
        load_peer("hf_vit", config, renamed | {"vit.layers.1.mlp.fc3.bias": torch.zeros(1)})
    both = renamed | {"vit.encoder.layer.0.output.dense.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"both .*output\.dense\.bias.* and .*mlp\.fc2\.bias"):
        load_peer("hf_vit", config, both)


def test_heads_of_another_width_are_refused(files: tuple[dict[str, Any], dict]) -> None:
    config, weights = files
    with pytest.raises(ValueError, match="head_dim=5"):
        load_peer("hf_vit", config | {"head_dim": 5}, weights)


@pytest.mark.parametrize("classes", [5, 0])
def test_transformers_model_in_memory_gives_its_numbers(classes: int) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    from transformers import ViTConfig, ViTForImageClassification, ViTModel  # type: ignore[import-not-found]

    config = ViTConfig(**SIZES, num_labels=classes or 2, hidden_act="quick_gelu")
    theirs = (ViTForImageClassification if classes else ViTModel)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model = load_peer("hf_vit", theirs.config, theirs.state_dict())  # as docs/peers.md shows it
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images).logits if classes else theirs(images).last_hidden_state[:, 0]
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_head": 4}, "'num_head' is no argument of torchtune's clip_vision_encoder"),
        ({"norm_eps": 1e-6}, "'norm_eps' is no argument"),
        ({"num_heads": None}, "lacks num_heads"),
    ],
)
def test_torchtunes_arguments_are_its_own(change: dict[str, Any], says: str) -> None:
    config = {"tile_size": 16, "patch_size": 8, "embed_dim": 8, "num_layers": 1, "num_heads": 2} | change
    with pytest.raises(ValueError, match=says):
        load_peer("torchtune", {key: value for key, value in config.items() if value is not None}, {})


def test_timms_arguments_are_its_own() -> None:
    with pytest.raises(ValueError, match="'num_head' is no argument of timm's VisionTransformer"):
        load_peer("timm", {"num_head": 4}, {})
