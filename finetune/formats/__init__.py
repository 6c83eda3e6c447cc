"""Weights of other packages into our models, and ours into theirs.

    model = load_peer("hf_vit", config, weights)
    config, weights = to_peer(model, "hf_vit")

A peer's configuration is a dict of its own constructor arguments, its weights are a mapping from its
own names to arrays or tensors. Loading what `to_peer` gave is the identity, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from data_tools.errors import UsageError

from . import google, hf, timm, torchtune
from .entries import Weights

_PEERS = {
    "torchtune": torchtune,
    "hf_vit": hf.PLAIN,
    "hf_vit_hybrid": hf.HYBRID,
    "timm": timm,
    "google": google,
}
SOURCES = tuple(_PEERS)


def load_peer(
    source: str, config: Mapping[str, Any], weights: Weights, *, resize: str | None = None
) -> nn.Module:
    """A model with a peer's weights and numbers, in evaluation mode: float64 stays, all else is float32.

    source: torchtune (the arguments of clip_vision_encoder; gives a VisionTransformer), hf_vit
    (ViTConfig), hf_vit_hybrid (ViTHybridConfig), timm (VisionTransformer) or google (a
    vision_transformer model config and `image_size`); these give a Classifier. Arguments that are
    left out have the peer's defaults; those that change no number in evaluation are not looked at.
    A model without a head has num_classes 0: its logits are what the head would see.

    Position tables of another grid than the configuration's image size are interpolated, as the peer
    itself does it or by `resize`, a mode of `resize.resize_grid`; torchtune's are stretched as its
    own loading does.

    Raises ValueError for weights that are missing, unknown or of another shape, naming the first, and
    for what our models cannot compute.
    """
    try:
        return _peer(source).load_peer(dict(config), weights, resize)
    except UsageError as error:
        raise ValueError(f"{source}: {error}") from None


def to_peer(model: nn.Module, target: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of `model` as the peer has them; the tensors are copies.

    target: as `source` of `load_peer`. Raises ValueError saying what the peer cannot express.
    """
    return _peer(target).to_peer(model)


def _peer(name: str) -> Any:
    if name not in _PEERS:
        raise ValueError(f"{name!r} is no peer: choose {', '.join(_PEERS)}")
    return _PEERS[name]
