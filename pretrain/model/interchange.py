"""Moved to finetune/formats. This file says so until the next release."""

raise ImportError(
    "pretrain.model.interchange is now finetune.formats: from finetune.formats import load_peer, to_peer"
)
