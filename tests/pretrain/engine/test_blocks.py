"""Compiled and checkpointed blocks compute what plain ones do."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from data_tools.errors import UsageError
from pretrain.config.schema import EngineConfig
from pretrain.engine import blocks
from pretrain.engine.blocks import compiling
from pretrain.model import Block, TiledTokenPositionalEmbedding, VisionTransformer
from pretrain.model.rope import image_rotation

SHAPES = ((1, 1), (1, 2), (2, 2), (3, 1), (1, 4), (2, 1))


@pytest.fixture(params=["table", "rotary"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VisionTransformer:
    monkeypatch.setattr(blocks, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    rotary = request.param == "rotary"
    kinds = {"norm": "rms", "mlp": "swiglu"} if rotary else {}
    return VisionTransformer(
        patch_size=8,
        tile_size=16,
        num_layers=3,
        embed_dim=16,
        layer=Block(16, 2, 32, qk_norm=True, layer_scale=0.5, **kinds),
        token_pos_embedding=None if rotary else TiledTokenPositionalEmbedding(4, 16, 16, 8),
        rope=image_rotation(8, 4) if rotary else None,
        drop_path=0.2,
    )


def gradients(model: nn.Module, seed: int, grid: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Of a step on random images of the given rows and columns of tiles."""
    torch.manual_seed(seed)
    packing = model.packing(torch.tensor(grid), torch.device("cpu"))
    x, _ = model.encode(torch.randn(len(packing.image), 3, 16, 16), packing)
    model.zero_grad()
    x.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "checkpointing"), [("table", "none"), ("rotary", "selective")], indirect=["model"]
)
def test_all_blocks_share_one_graph_over_20_batches_of_other_tile_counts(
    model: VisionTransformer, checkpointing: str
) -> None:
    plain = copy.deepcopy(model)
    blocks.prepare_blocks(model.layers, EngineConfig(compile=True, activation_checkpointing=checkpointing))
    for step in range(20):
        alike = step % 5 == 0  # all images with one number of tiles, one tile at first
        grid = [SHAPES[step // 5 if alike else (step * image) % 6] for image in range(1, 7)]
        wanted, found = gradients(plain, step, grid), gradients(model, step, grid)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


class Count(TorchDispatchMode):
    """Counts the matrix products and attentions that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rpartition(".")[0]
        self.calls[name] += name in blocks.KEPT
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_selective_checkpointing_computes_no_matrix_product_or_attention_twice(
    model: VisionTransformer,
) -> None:
    calls, found = {}, {}
    for kind in ("none", "selective", "full"):
        one = copy.deepcopy(model)
        blocks.prepare_blocks(one.layers, EngineConfig(activation_checkpointing=kind))
        with Count() as count:
            found[kind] = gradients(one, 0, [(1, 1), (1, 2)])
        calls[kind] = +count.calls
    for kind in ("selective", "full"):
        assert all(torch.equal(found[kind][name], value) for name, value in found["none"].items())
    assert calls["selective"] == calls["none"]
    assert calls["full"] - calls["none"] == {
        "aten.addmm": 3 * 4,
        "aten._scaled_dot_product_flash_attention_for_cpu": 3 * 2,
    }


def test_compiling_is_said_and_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiling(EngineConfig()) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", sys.executable)
    assert f"for the CPU, with {sys.executable}" in compiling(EngineConfig(compile=True))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs the C\+\+ compiler no-such-compiler"):
        compiling(EngineConfig(compile=True))
