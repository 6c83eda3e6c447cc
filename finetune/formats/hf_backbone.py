"""transformers' BiT: the ResNet before the Transformer of ViT-Hybrid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pretrain.config.schema import BackboneConfig
from pretrain.model.classifier import Classifier
from pretrain.model.hybrid import ResNetV2
from pretrain.model.variants import multiple_of_8

from .entries import Entry, Weights, affine, same
from .hf_settings import ACTIVATIONS
from .names import activation_name, our_activation, refuse, square, units_of

BACKBONE_DEFAULTS: dict[str, Any] = {
    "model_type": "bit",
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "num_groups": 32,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "width_factor": 1,
    "out_features": None,
    "out_indices": None,
}
# The backbone of a ViTHybridConfig that names none, where it differs from those defaults.
USUAL_BACKBONE: dict[str, Any] = {
    "global_padding": "same",
    "layer_type": "bottleneck",
    "depths": [3, 4, 9],
    "out_features": ["stage3"],
    "embedding_dynamic_padding": True,
}
BIT = "embeddings.patch_embeddings.backbone.bit."  # before the names of its parameters


def read_bit(config: dict[str, Any]) -> BackboneConfig:
    """Our configuration of the backbone of a ViTHybridConfig, up to the stage that gives the features.

    ValueError for a backbone that our models cannot compute.
    """
    given = config.get("backbone_config")
    bit = BACKBONE_DEFAULTS | (USUAL_BACKBONE if given is None else dict(given))
    if config.get("backbone") or config.get("use_timm_backbone") or bit["model_type"] != "bit":
        raise ValueError("only backbone_config of BiT (model_type 'bit') is supported")
    if bit["layer_type"] not in ("bottleneck", "preactivation"):
        raise ValueError(f"layer_type={bit['layer_type']!r}: choose bottleneck, preactivation")
    padding = bit["global_padding"]
    if padding is not None and padding.lower() != "same":
        raise ValueError(f"global_padding={padding!r}: choose same, or None for symmetric padding")
    stages = min(len(bit["depths"]), len(bit["hidden_sizes"]))
    last = _last_stage(bit, stages)
    return BackboneConfig(
        depths=list(bit["depths"][:last]),
        widths=[multiple_of_8(width * bit["width_factor"]) for width in bit["hidden_sizes"][:last]],
        stem=bit["embedding_size"],
        groups=bit["num_groups"],
        unit=bit["layer_type"],
        activation=our_activation(bit["hidden_act"], ACTIVATIONS, "transformers"),
        padding="symmetric" if padding is None else "same",
        pool_padding=bit["embedding_dynamic_padding"],
        output_stride=bit["output_stride"],
    )


def _last_stage(bit: dict[str, Any], stages: int) -> int:
    """How many stages lead to the features; of several feature maps the last one is used."""
    names = ["stem", *(f"stage{index}" for index in range(1, len(bit["depths"]) + 1))]
    chosen = bit["out_features"] or [names[index] for index in bit["out_indices"] or [len(names) - 1]]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"out_features has {unknown[0]!r}: choose {', '.join(names)}")
    last = max(names.index(name) for name in chosen)
    if last > stages:
        raise ValueError(f"out_features asks for stage {last}, but hidden_sizes has only {stages}")
    return last


def feature_grids(config: dict[str, Any]) -> list[tuple[int, int]]:
    """[(rows, columns)] of the position table by a ViTHybridConfig; [] without backbone_featmap_shape."""
    shape = config.get("backbone_featmap_shape")
    if not shape:
        return []
    patch = square(config["patch_size"], "patch_size")
    return [(shape[-2] // patch, shape[-1] // patch)]


def bit_entries(backbone: ResNetV2) -> Iterator[Entry]:
    """All parameters of `backbone`."""
    ours, theirs = "encoder.patch_embed.backbone.", BIT
    yield same(f"{ours}conv_root.weight", f"{theirs}embedder.convolution.weight")
    if backbone.norm_root is not None:
        yield from affine(f"{ours}norm_root", f"{theirs}embedder.norm")
    for stage, index, unit in units_of(backbone):
        our, their = f"{ours}stages.{stage}.{index}.", f"{theirs}encoder.stages.{stage}.layers.{index}."
        if isinstance(unit.shortcut, nn.Sequential):
            yield same(f"{our}shortcut.0.weight", f"{their}downsample.conv.weight")
        if isinstance(unit.shortcut, nn.Sequential) and len(unit.shortcut) == 2:
            yield from affine(f"{our}shortcut.1", f"{their}downsample.norm")
        for number in (1, 2, 3):
            yield same(f"{our}conv{number}.weight", f"{their}conv{number}.weight")
            yield from affine(f"{our}norm{number}", f"{their}norm{number}")


def without_unused(weights: Weights, stages: int) -> Weights:
    """The weights without the parts of the backbone that no feature passes through.

    These are the stages after the first `stages`, and the backbone's own last norm.
    """
    head = f"{BIT}encoder.stages."
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith(f"{BIT}norm.")
        and not (name.startswith(head) and int(name.removeprefix(head).partition(".")[0]) >= stages)
    }


def unused_norm(bit: dict[str, Any], model: Classifier) -> dict[str, Tensor]:
    """The backbone's own last norm as it begins, for files: transformers loads it, and no feature passes it.

    bit: a BitConfig; only a backbone with layer_type preactivation has this norm.
    """
    if bit["layer_type"] != "preactivation":
        return {}
    channels, like = bit["hidden_sizes"][-1], model.encoder.ln_post.get_parameter("weight")
    return {f"{BIT}norm.weight": like.new_ones(channels), f"{BIT}norm.bias": like.new_zeros(channels)}


def bit_config(bit: BackboneConfig, channels: int) -> dict[str, Any]:
    """The BitConfig of our backbone for images of `channels`; ValueError for what it cannot express."""
    refuse(
        "hf_vit_hybrid",
        {
            "convolutions standardised by std + 1e-5, as Google's": bit.standardize != "var",
            "GroupNorms with another epsilon than 1e-5": bit.norm_eps != 1e-5,
            f"backbone widths {bit.widths}, which are no multiples of 8": any(w % 8 for w in bit.widths),
        },
    )
    return {
        "model_type": "bit",
        "num_channels": channels,
        "embedding_size": bit.stem,
        "hidden_sizes": list(bit.widths) or [bit.stem],
        "depths": list(bit.depths),
        "layer_type": bit.unit,
        "hidden_act": activation_name(bit.activation, ACTIVATIONS, "hf_vit_hybrid"),
        "global_padding": "same" if bit.padding == "same" else None,
        "num_groups": bit.groups,
        "embedding_dynamic_padding": bit.pool_padding,
        "output_stride": bit.output_stride,
        "out_features": [f"stage{len(bit.depths)}" if bit.depths else "stem"],
    }
