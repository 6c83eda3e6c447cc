"""The JSON files of transformers and timm: the types of the values that are read, and their limits.

Each class lists keys with their types. Keys that are not listed may be there; their values are not looked at.
The defaults here only say that a key may be missing: what a missing one means stands with the format.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pretrain.checkpoints.described import Count, Deviation, Size, Strict

Sides = Size | Annotated[list[Size], Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, lt=1000)]
# Of all colours or of each of them; see `names.three`.
Colours = float | Annotated[list[float], Field(min_length=1, max_length=3)]
Deviations = Deviation | Annotated[list[Deviation], Field(min_length=1, max_length=3)]


class Described(Strict):
    """A JSON object of another program, which may have keys that are not listed."""

    model_config = ConfigDict(extra="allow")


class ShardIndex(Described):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


class BitDescription(Described):
    """backbone_config of a ViTHybridConfig."""

    model_type: str = ""
    num_channels: Size = 1
    embedding_size: Size = 1
    hidden_sizes: list[Size] | None = None
    depths: list[Size] | None = None
    layer_type: str = ""
    hidden_act: str = ""
    global_padding: str | None = None
    num_groups: Size = 1
    embedding_dynamic_padding: bool = False
    output_stride: Size = 1
    width_factor: Ratio = 1
    out_features: list[str] | None = None
    out_indices: list[Count] | None = None


class HfDescription(Described):
    """config.json of transformers."""

    model_type: str = ""
    hidden_size: Size = 1
    num_hidden_layers: Count = 1
    num_attention_heads: Size = 1
    intermediate_size: Size = 1
    hidden_act: str = ""
    hidden_dropout_prob: Share = 0
    attention_probs_dropout_prob: Share = 0
    layer_norm_eps: Epsilon = 0
    image_size: Sides = 1
    patch_size: Sides = 1
    num_channels: Size = 1
    qkv_bias: bool = True
    pooler_act: str = ""
    problem_type: str | None = None
    num_labels: Size | None = None
    id2label: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], str | int] | None = None
    backbone: str | None = None
    use_timm_backbone: bool | None = None
    backbone_config: BitDescription | None = None
    backbone_featmap_shape: Annotated[list[Size], Field(min_length=2)] | None = None


class SidesByName(Described):
    """The size of images in a preprocessor_config.json."""

    height: Size = 1
    width: Size = 1
    shortest_edge: Size = 1


class HfPreprocessor(Described):
    """preprocessor_config.json of transformers."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    size: Size | SidesByName | None = None
    crop_size: Size | SidesByName | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_pad: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    resample: Count = 2
    rescale_factor: Annotated[float, Field(gt=0)] = 1
    image_mean: Colours | None = None
    image_std: Deviations | None = None


class TimmArguments(Described):
    """model_args of timm's config.json: arguments of its VisionTransformer."""

    img_size: Sides | None = None
    patch_size: Sides | None = None
    in_chans: Size | None = None
    num_classes: Count | None = None
    global_pool: str | None = None
    embed_dim: Size | None = None
    depth: Count | None = None
    num_heads: Size | None = None
    mlp_ratio: Ratio | None = None
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    init_values: Annotated[float, Field(gt=0)] | None = None
    class_token: bool | None = None
    no_embed_class: bool | None = None
    reg_tokens: Count | None = None
    pre_norm: bool | None = None
    fc_norm: bool | None = None
    proj_drop_rate: Share | None = None
    attn_drop_rate: Share | None = None
    drop_path_rate: Share | None = None
    act_layer: str | None = None
    norm_eps: Epsilon | None = None


class TimmPreprocessing(Described):
    """pretrained_cfg of timm's config.json."""

    input_size: Annotated[list[Size], Field(min_length=3, max_length=3)] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    mean: Colours | None = None
    std: Deviations | None = None
    label_names: list[str] | None = None
    labels: list[str] | None = None


class TimmDescription(TimmPreprocessing):
    """config.json of timm's hub form; early ones have the keys of `pretrained_cfg` among the others.

    `objective` is a key that this project's export adds.
    """

    architecture: str
    num_classes: Count = 0
    global_pool: str = ""
    model_args: TimmArguments | None = None
    pretrained_cfg: TimmPreprocessing | None = None
    objective: Literal["softmax", "sigmoid", "regression"] | None = None


class AnyDescription(Described):
    """A config.json of which it is not yet known whose it is."""

    architecture: str | None = None
    model_type: str | None = None
