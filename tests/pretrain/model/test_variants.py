"""Names of models, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.errors import UsageError
from pretrain.config.schema import ModelConfig
from pretrain.model.variants import USUAL_NAMES, resolve

ROOT = Path(__file__).resolve().parents[3]


def test_names_are_sizes_and_patch_sizes():
    arch = resolve(ModelConfig(name="vit_so400m14"))
    assert (arch.patch_size, arch.embed_dim, arch.num_layers) == (14, 1152, 27)
    assert (arch.mlp_dim, arch.num_heads, arch.backbone) == (4304, 16, None)
    arch = resolve(ModelConfig(name="vit_22b14"))
    assert (arch.embed_dim, arch.parallel, arch.qk_norm, arch.qkv_bias) == (6144, True, True, False)
    assert resolve(ModelConfig(name="vit_22b14", parallel=False)).parallel is False
    assert resolve(ModelConfig(name="vit_g14")).embed_dim == 1408
    assert resolve(ModelConfig(name="vit_G14")).embed_dim == 1664
    assert resolve(ModelConfig(name="vit_b24")).patch_size == 24
    for name in USUAL_NAMES:
        assert resolve(ModelConfig(name=name)).name == name


def test_given_fields_replace_those_of_the_name():
    arch = resolve(ModelConfig(name="vit_s16", num_layers=3, patch_size=8))
    assert (arch.num_layers, arch.patch_size, arch.embed_dim) == (3, 8, 384)


def test_the_features_of_a_hybrid_decide_its_grid():
    assert resolve(ModelConfig(name="hybrid_r50_b16")).grid(384) == 24
    assert resolve(ModelConfig(name="hybrid_r26_s32")).grid(384) == 12
    assert resolve(ModelConfig(name="hybrid_r50_l32", patch_size=2)).stride == 64


@pytest.mark.parametrize("name", ["vit_b", "vit_xl16", "vit_b016", "resnet50", "", "hybrid_r50_b8"])
def test_unknown_names_are_answered_with_near_ones(name):
    with pytest.raises(UsageError, match=r"model\.name.*near it: (vit|hybrid)_"):
        resolve(ModelConfig(name=name))


def test_tiles_that_patches_do_not_fill_are_refused():
    with pytest.raises(UsageError, match=r"data\.tile_size is 256.*252 or 266"):
        resolve(ModelConfig(name="vit_h14")).grid(256)
    with pytest.raises(UsageError, match="nearest is 16"):
        resolve(ModelConfig(name="vit_s16")).grid(8)


def test_torch_is_not_imported():
    code = "import sys, pretrain.model.variants, pretrain.model.flops; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert output.stdout.strip() == "False"
