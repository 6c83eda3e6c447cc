"""The configuration of fine-tuning: that of pretraining, and where the first weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from data_tools.errors import UsageError
from pretrain.config.loading import load
from pretrain.config.schema import Config, ModelConfig

from .source import TrainedWeights, open_source

HEAD_FIELDS = {"head", "head_hidden", "head_activation", "head_bias", "num_classes"}


@dataclass
class FinetuneConfig(Config):
    """A recipe of `python -m finetune`: the keys of pretraining, a linear head by default, and init*."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(head="linear"))
    init: str = ""  # a run, a checkpoint, an exported file, or a model of transformers, timm or Google
    init_weights: str = "auto"  # auto: averaged if the run kept averages | ema | last: as trained
    init_resize: str = "bilinear"  # bilinear (the paper's) | bicubic (antialiased)


def load_finetune(path: str, overrides: Sequence[str]) -> tuple[FinetuneConfig, TrainedWeights]:
    """The recipe `path`, changed by `overrides` (key=value), and the weights that it starts from.

    The body of the model and the normalisation of its input are those of the weights, unless the recipe
    says otherwise; the head is the recipe's. Raises UsageError, and DataError for damaged weights.
    """
    config = load(path, overrides, FinetuneConfig)
    if config.init_resize not in ("bilinear", "bicubic"):
        raise UsageError(f"init_resize={config.init_resize}: it is one of bilinear, bicubic")
    if config.init_weights not in ("auto", "ema", "last"):
        raise UsageError(f"init_weights={config.init_weights}: it is one of auto, ema, last")
    if not config.init:
        raise UsageError("init is empty: give the pretrained run, init=RUN|CHECKPOINT|FILE")
    source = open_source(config.init, config.init_weights)
    body = {item.name for item in fields(ModelConfig)} - HEAD_FIELDS
    defaults = {
        "model": {key: value for key, value in source.facts["model"].items() if key in body},
        "data": {key: source.facts["preprocessing"][key] for key in ("mean", "std")},
    }
    return load(path, overrides, FinetuneConfig, defaults), source
