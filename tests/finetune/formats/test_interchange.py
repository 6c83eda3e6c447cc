"""Weights in from other packages, and out to them."""

import json

import pytest
import torch
from golden import under
from references.made import made

from finetune.formats import load_peer, to_peer
from pretrain.config.schema import BackboneConfig
from pretrain.model import Block, Classifier, TokenPositionalEmbedding, VisionTransformer
from pretrain.model.init import initialize

PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
FILES = {
    "tt_single_tile": ("torchtune", ("weights/",)),
    "tt_tiled": ("torchtune", ("weights/",)),
    "tt_append_cls_proj": ("torchtune", ("weights/",)),
    "hf_vit": ("hf_vit", ("weights/", "weights_base/")),
    "hf_vit_hybrid": ("hf_vit_hybrid", ("weights/", "weights_base/")),
    "google_vit_npz": ("google", ("npz/",)),
    "google_hybrid_npz": ("google", ("npz/",)),
}
SMALL = {"embed_dim": 32, "num_heads": 4, "num_layers": 2, "mlp_dim": 48, "head": "linear"}
RESNET = {"depths": [1, 2], "stem": 16, "widths": [32, 48], "groups": 4}
GOOGLES = {"depths": [1, 1], "stem": 32, "standardize": "std", "norm_eps": 1e-6}
WEIGHTS = [
    ("hf_vit", {}),
    ("hf_vit", {"qkv_bias": False, "activation": "relu", "norm_eps": 1e-12, "tile_size": (32, 48)}),
    ("hf_vit", {"num_classes": 0, "mask_token": True, "pooler": True, "in_channels": 1}),
    ("hf_vit_hybrid", {"backbone": RESNET}),
    ("hf_vit_hybrid", {"backbone": RESNET | {"unit": "preactivation", "padding": "symmetric"}}),
    ("hf_vit_hybrid", {"backbone": RESNET | {"output_stride": 4, "pool_padding": False}, "num_classes": 0}),
    ("google", {"activation": "gelu_tanh"}),
    ("google", {"activation": "gelu_tanh", "head": "mlp", "head_hidden": 20, "pool": "mean"}),
    ("google", {"activation": "gelu_tanh", "head": "mlp", "num_classes": 0}),
    ("google", {"activation": "gelu_tanh", "backbone": GOOGLES}),
    ("timm", {}),
    ("timm", {"pool": "mean", "final_norm": "pooled", "qk_norm": True, "layer_scale": 0.1}),
    ("timm", {"pool": "mean", "class_token": True, "pre_norm": True, "tile_size": (32, 16)}),
    ("timm", {"pool": "map", "activation": "silu", "mlp_dim": 41, "num_classes": 0}),
    ("timm", {"pool": "map", "registers": 2, "class_token": True}),
    ("timm", {"registers": 3, "norm_eps": 1e-5, "qkv_bias": False}),
    ("timm", {"backbone": {"depths": [1, 1], "stem": 32}}),
    ("timm", {"backbone": {"depths": [], "stem": 32}, "patch_size": 2}),
]


@pytest.fixture
def built(small_config):
    """Builds a small classifier with random parameters."""

    def build(backbone=None, tile_size=32, num_classes=5, in_channels=3, extras=(), **fields):
        options = {key: fields.pop(key) for key in ("mask_token", "pooler") if key in fields}
        if backbone is not None:
            fields["backbone"] = BackboneConfig(**backbone)
            fields = {"patch_size": 1, "name": "hybrid_r50_b16"} | fields
        config = small_config(**(SMALL | {"name": "vit_b16"} | fields))
        model = Classifier(
            config,
            tile_size=tile_size,
            max_tiles=1,
            num_classes=num_classes,
            mean=[0.5] * in_channels,
            std=[0.5] * in_channels,
            in_channels=in_channels,
            **options,
        )
        initialize(model, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


def same_parameters(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert {value.dtype for value in ours.values()} == {value.dtype for value in theirs.values()}


@pytest.mark.parametrize("name", FILES)
def test_peers_weights_come_back_bit_for_bit_under_their_names(name):
    source, folders = FILES[name]
    data = made(name)
    weights = under(data, *folders)
    model = load_peer(source, json.loads(str(data["config_json"])), weights)
    config, written = to_peer(model, source)
    same_parameters(load_peer(source, config, written), model)
    if source.startswith("hf"):  # the reference files keep some of the body apart, without its prefix
        weights = {k if k.startswith(("vit.", "classifier.")) else f"vit.{k}": v for k, v in weights.items()}
    assert written.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(written[key], torch.from_numpy(value)), key


@pytest.mark.parametrize(("target", "fields"), WEIGHTS)
def test_out_and_in_again_is_the_identity(built, target, fields):
    model = built(**fields)
    config, weights = to_peer(model, target)
    config = json.loads(json.dumps(config))
    other = load_peer(target, config, weights)
    same_parameters(other, model)
    size = fields.get("tile_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, fields.get("in_channels", 3), height, width)
    assert torch.equal(other(images), model(images))
    double = model.double()
    same_parameters(load_peer(target, *to_peer(double, target)), double)


def test_torchtunes_two_kinds_of_bias(built):
    config = {"tile_size": 16, "patch_size": 8, "embed_dim": 8, "num_layers": 1, "num_heads": 2}
    from finetune.formats import torchtune

    with torch.device("meta"):
        model = torchtune._build(torchtune.DEFAULTS | config | {"attn_bias": False, "max_num_tiles": 2})
    model.to_empty(device="cpu")
    initialize(model, 0)
    written, weights = to_peer(model, "torchtune")
    assert written["attn_bias"] is False
    assert "layers.0.attn.output_proj.bias" not in weights
    same_parameters(load_peer("torchtune", written, weights), model)


def test_weights_are_copies(built):
    model = built()
    config, weights = to_peer(model, "hf_vit")
    before = model.head.weight.clone()
    weights["classifier.weight"].zero_()
    assert torch.equal(model.head.weight, before)
    other = load_peer("hf_vit", config, weights)
    weights["classifier.bias"].fill_(7)
    assert not (other.head.bias == 7).any()


def test_numbers_of_one_peer_are_those_of_another(built):
    model = built(activation="gelu_tanh", norm_eps=1e-6).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for target in ("hf_vit", "timm", "google"):
        assert torch.equal(load_peer(target, *to_peer(model, target))(images), model(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vit.layernorm.bias"), "lack 'vit.layernorm.bias'"),
        (lambda w: w.update({"vit.extra": torch.zeros(1)}), "hold 'vit.extra'"),
        (
            lambda w: w.update({"classifier.bias": torch.zeros(7)}),
            r"'classifier.bias' has shape \[7\].*needs \[5\]",
        ),
        (
            lambda w: w.update({"vit.embeddings.position_embeddings": torch.zeros(1, 16, 32)}),
            r"'vit.embeddings.position_embeddings' has shape \[1, 16, 32\]",
        ),
        (lambda w: w.update({"layernorm.bias": torch.zeros(32)}), "both 'layernorm.bias'"),
    ],
)
def test_wrong_weights_are_refused_by_name(built, change, message):
    config, weights = to_peer(built(), "hf_vit")
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_peer("hf_vit", config, weights)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("hf_vit", {"hidden_act": "mish"}, "activation 'mish'"),
        ("hf_vit", {"num_attention_heads": 5}, "32.*5 heads"),
        ("hf_vit", {"patch_size": [8, 4]}, "square patches"),
        ("hf_vit", {"pooler_act": "relu"}, "pooler_act"),
        ("timm", {"global_pool": "max"}, "global_pool='max'"),
        ("timm", {"proj_bias": False}, "proj_bias=False"),
        ("timm", {"img_size": 35}, "35.*multiple of 8.*32 or 40"),
        ("google", {"classifier": "unpooled"}, "classifier='unpooled'"),
        ("openclip", {}, "no peer: choose torchtune"),
    ],
)
def test_what_our_models_cannot_be_is_refused(built, source, change, message):
    config, weights = {}, {}
    if source != "openclip":
        config, weights = to_peer(built(activation="gelu_tanh"), source)
    with pytest.raises(ValueError, match=message):
        load_peer(source, config | change, weights)


@pytest.mark.parametrize(
    ("target", "fields", "message"),
    [
        ("hf_vit", {"head": "mlp"}, "two-layer head"),
        ("hf_vit", {"registers": 2}, "registers"),
        ("hf_vit", {"pool": "mean"}, "model.pool=mean"),
        ("hf_vit", {"backbone": RESNET}, "backbone"),
        ("hf_vit", {"qk_norm": True}, "query-key norms"),
        ("hf_vit_hybrid", {"backbone": GOOGLES}, "standardised"),
        ("google", {}, "model.activation=gelu"),
        ("google", {"activation": "gelu_tanh", "layer_scale": 0.1}, "LayerScale"),
        ("google", {"activation": "gelu_tanh", "backbone": RESNET}, "not Google's"),
        ("timm", {"head": "mlp"}, "two-layer head"),
        ("timm", {"parallel": True}, "parallel"),
        ("torchtune", {}, "without a head"),
    ],
)
def test_what_a_peer_cannot_express_is_said(built, target, fields, message):
    with pytest.raises(ValueError, match=message):
        to_peer(built(**fields), target)


def test_several_tiles_are_torchtunes_alone(small):
    for target in ("hf_vit", "timm", "google"):
        with pytest.raises(ValueError, match="up to 4 tiles"):
            to_peer(small(max_tiles=4, head="linear"), target)


def test_positions_follow_the_image_size_of_the_configuration(built):
    config, weights = to_peer(built(), "timm")
    model = load_peer("timm", config | {"img_size": [48, 64]}, weights)
    assert model.geometry.grid == (6, 8)
    assert model(torch.randn(1, 3, 48, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match="32x32, but must be 48x64"):
        model(torch.randn(1, 3, 32, 32))
    original = load_peer("timm", config, weights)
    resized = original.resized((48, 64), "bicubic")
    same_parameters(resized, model)
    assert resized.head.weight is original.head.weight


def test_timms_registers_may_have_positions(built):
    model = built(registers=2)
    config, weights = to_peer(model, "timm")
    places = torch.randn(1, 3 + 16, 32)
    moved = weights | {"pos_embed": places, "reg_token": weights["reg_token"] - places[:, 1:3]}
    other = load_peer("timm", config, moved)
    torch.testing.assert_close(other.encoder.register_tokens, model.encoder.register_tokens)
    patches = weights | {"pos_embed": places[:, 3:]}
    other = load_peer("timm", config | {"no_embed_class": True}, patches)
    assert torch.equal(
        other.encoder.token_pos_embedding.local, torch.cat([torch.zeros(1, 32), places[0, 3:]])
    )


def test_googles_arrays_may_be_named_as_flax_names_them_today(built):
    model = built(activation="gelu_tanh", backbone=GOOGLES)
    config, weights = to_peer(model, "google")
    renamed = {}
    for name, value in weights.items():
        for old, new in (
            ("LayerNorm_2", "LayerNorm_1"),
            ("MlpBlock_3", "MlpBlock_0"),
            ("Attention_1", "Attention_0"),
        ):
            name = name.replace(old, new)
        if "gn" in name:
            value = value[None, None, None]
        renamed[f"params/{name}"] = value
    same_parameters(load_peer("google", config, renamed), model)


@pytest.mark.parametrize(
    ("block", "projection", "says"),
    [
        ({"norm_eps": 1e-6}, None, "another epsilon"),
        ({"activation": "gelu_tanh"}, None, "no activation gelu_tanh"),
        ({}, torch.nn.Linear(16, 3), "class projection of another kind"),
    ],
)
def test_what_torchtune_would_compute_otherwise_is_refused(block, projection, says):
    model = VisionTransformer(
        4,
        8,
        2,
        16,
        Block(16, 2, 64, **{"norm_eps": 1e-5} | block),
        TokenPositionalEmbedding(16, 8, 4),
        cls_projection=projection,
    )
    with pytest.raises(ValueError, match=says):
        to_peer(model, "torchtune")


def test_dropout_of_attention_comes_along(built):
    model = built(attention_dropout=0.1)
    config, weights = to_peer(model, "hf_vit")
    assert config["attention_probs_dropout_prob"] == 0.1
    again = load_peer("hf_vit", config, weights)
    assert {block.attn.dropout for block in again.blocks} == {0.1}
