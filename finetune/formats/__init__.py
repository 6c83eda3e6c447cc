"""Weights of other programs into our models, and ours into theirs.

    model = load_peer("hf_vit", config, weights)
    config, weights = to_peer(model, "hf_vit")

A peer is another program's model. Its configuration is a dict of its own constructor arguments; its
weights are a mapping from its own names to arrays or tensors. Loading what `to_peer` gave returns the
same parameters, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from data_tools.errors import UsageError

from . import google, hf, timm, torchtune
from .entries import Weights


class PeerConfig(Protocol):
    """A configuration object of transformers."""

    def to_dict(self) -> dict[str, Any]:
        """Its arguments by name."""


class Format(Protocol):
    """What each peer's module offers; UsageError or ValueError for what the two models do not share."""

    def load_peer(self, given: dict[str, Any], weights: Weights, resize: str | None, /) -> nn.Module:
        """As `load_peer` below."""

    def to_peer(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As `to_peer` below."""


_FORMATS: dict[str, Format] = {
    "torchtune": torchtune,
    "hf_vit": hf.PLAIN,
    "hf_vit_hybrid": hf.HYBRID,
    "timm": timm,
    "google": google,
}


def load_peer(
    source: str, config: Mapping[str, Any] | PeerConfig, weights: Weights, *, resize: str | None = None
) -> nn.Module:
    """A model with a peer's weights, which computes the peer's numbers, in evaluation mode.

    source: torchtune (the arguments of clip_vision_encoder; gives a VisionTransformer), hf_vit
    (ViTConfig), hf_vit_hybrid (ViTHybridConfig), timm (VisionTransformer) or google (a
    vision_transformer model config and `image_size`); these give a Classifier. transformers' configuration
    may be its object, and its weights may be named as in files or as in memory. Arguments that are left out
    have the peer's defaults; those that change no number in evaluation are ignored. One that torchtune or
    timm does not have is refused.
    A model without a head has num_classes 0: its logits are what the head would see.
    float64 weights stay float64, all others become float32.

    Position tables of another grid than the configuration's image size are interpolated, as the peer
    itself does it or by `resize`, a mode of `resize.resize_grid`; torchtune's are stretched as its
    own loading does.

    Raises ValueError for weights that are missing, unknown or of another shape, naming the first, and
    for what our models cannot compute.
    """
    try:
        given = dict(config) if isinstance(config, Mapping) else config.to_dict()
        return _format(source).load_peer(given, weights, resize)
    except UsageError as error:
        raise ValueError(f"{source}: {error}") from None


def to_peer(model: nn.Module, target: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of `model` as the peer has them; the tensors are copies.

    target: as `source` of `load_peer`. Raises ValueError saying what the peer cannot express.
    """
    return _format(target).to_peer(model)


def _format(name: str) -> Format:
    if name not in _FORMATS:
        raise ValueError(f"{name!r} is no peer: choose {', '.join(_FORMATS)}")
    return _FORMATS[name]
