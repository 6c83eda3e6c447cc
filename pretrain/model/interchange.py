"""Gone: other programs' weights are read and written in finetune/formats. Goes with the next release."""

raise ImportError(
    "pretrain.model.interchange is now finetune.formats: from finetune.formats import load_peer, to_peer"
)
