"""The configuration of fine-tuning: that of pretraining, and where the first weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from data_tools.errors import DataError, UsageError, UserError
from pretrain.checkpoints.checkpoint import Checkpoint, complete
from pretrain.config.limits import choice
from pretrain.config.loading import load, read
from pretrain.config.schema import Config, ModelConfig
from pretrain.model.variants import resolve
from pretrain.run.folder import RunFolder
from pretrain.run.restart import begins_anew

from .source import TrainedWeights, open_source

HEAD_FIELDS = {"head", "head_hidden", "head_activation", "head_bias", "num_classes"}
# What only acts in training, or only before it: the recipe of fine-tuning decides, not that of pretraining.
TRAINING_FIELDS = {"dropout", "attention_dropout", "drop_path"}
BODY = {item.name for item in fields(ModelConfig)} - HEAD_FIELDS - TRAINING_FIELDS
PREPROCESSING = ("mean", "std", "eval_resize", "eval_crop", "eval_resample")


@dataclass
class FinetuneConfig(Config):
    """A recipe of `python -m finetune`: the keys of pretraining, a linear head by default, and init*."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(head="linear"))
    init: str = ""  # a run, a checkpoint, an exported file, or a model of transformers, timm or Google
    # auto: averaged if the run kept averages; last: as trained
    init_weights: str = choice("auto", "ema", "last")
    init_resize: str = choice("bilinear", "bicubic")  # bilinear is the paper's, bicubic is antialiased
    # Parameters, or modules such as [pool_norm], that begin anew although the weights lack them
    init_missing: list[str] = field(default_factory=list)


def load_finetune(path: str, overrides: Sequence[str]) -> tuple[FinetuneConfig, TrainedWeights]:
    """The recipe `path`, changed by `overrides` (key=value), and the weights that it starts from.

    The body of the model and the preprocessing of its input are those of the weights, unless the recipe says
    otherwise; the head, the size of images, and what acts in training alone are the recipe's. The notes of
    the weights say what of theirs is not taken. Raises UsageError, and DataError for damaged weights.
    """
    config = load(path, overrides, FinetuneConfig)
    if not config.init:
        raise UsageError("init is empty: give the pretrained run, init=RUN|CHECKPOINT|FILE")
    source = open_source(config.init, config.init_weights)
    known = source.facts["preprocessing"]
    defaults = {
        "model": {key: value for key, value in source.facts["model"].items() if key in BODY},
        "data": {key: known[key] for key in PREPROCESSING if key in known},
    }
    if known.get("eval_resize"):  # it stays in proportion to the tile
        size = known["eval_resize"] * config.data.tile_size / known["tile_size"]
        defaults["data"]["eval_resize"] = round(size)
    if config.model.pool != "cls" and resolve(ModelConfig(**source.facts["model"])).class_token:
        # A class token is a part of the body: it stays there where the recipe pools otherwise.
        defaults["model"]["class_token"] = True
    tuned = load(path, overrides, FinetuneConfig, defaults)
    notes = (*source.notes, *_training_notes(source, tuned), _preprocessing_note(source, tuned))
    return tuned, replace(source, notes=notes)


def load_begun(path: str, overrides: Sequence[str]) -> FinetuneConfig | None:
    """The recipe as `load_finetune` has it, of a run that goes on; None for a run without a checkpoint.

    What the run took over from the weights that it began with stands in its newest checkpoint that can be
    read, so these weights may be gone.
    """
    config = load(path, overrides, FinetuneConfig)
    begun = complete(config.folder / "checkpoints")
    if not begun or begins_anew(config, RunFolder(config.folder)):
        return None
    state: dict[str, Any] = {}
    for checkpoint in begun:
        with suppress(DataError):
            state = Checkpoint(checkpoint).state
            break
    model, data = state.get("model", {}), state.get("preprocessing", {})
    defaults: dict[str, Any] = {
        "model": {key: model[key] for key in BODY & model.keys()},
        "data": {key: data[key] for key in PREPROCESSING if key in data},
    }
    tuned = load(path, overrides, FinetuneConfig, defaults)
    if not tuned.init:
        with suppress(UserError):
            tuned.init = read(config.folder / "config.yaml", FinetuneConfig).init
    return tuned


def _training_notes(source: TrainedWeights, config: FinetuneConfig) -> list[str]:
    """Sentences about what the weights were trained with and the recipe does not have."""
    known = source.facts["model"]
    left = [f"model.{key}={known[key]:g}" for key in sorted(TRAINING_FIELDS) if known.get(key)]
    if not left or any(getattr(config.model, key) for key in TRAINING_FIELDS):
        return []
    return [f"it was trained with {', '.join(left)}, which fine-tuning does not take over: set it if wanted"]


def _preprocessing_note(source: TrainedWeights, config: FinetuneConfig) -> str:
    """What images go through, and where it is not what the weights were trained with."""
    data, theirs = config.data, source.data
    how = f"short side {data.eval_resize or data.tile_size}, centre crop" if data.eval_crop else "no crop"
    text = (
        f"evaluation resizes images by data.eval_resample={data.eval_resample}, {how}, to "
        f"data.tile_size={data.tile_size}"
    )
    if data.tile_size != theirs.tile_size:
        text += f" (the weights': {theirs.tile_size})"
    if data.eval_resample != "bicubic":
        text += "; training images are always resized bicubically"
    return text
