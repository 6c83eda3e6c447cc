"""What a model's weights are of no use without: its configuration, and how it sees images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from data_tools.errors import UsageError

from ..config.loading import flat
from ..config.schema import Config, ModelConfig
from ..model.variants import resolve

PREPROCESSING = (
    *("tile_size", "max_tiles", "mean", "std"),
    *("eval_resize", "eval_crop", "eval_resample", "max_pixels"),
)

# What may change in the life of a run: noise, first values, how images are evaluated. The name is covered by
# the sizes that it stands for, the number of classes by the classes.
CHANGEABLE = {
    *("model.name", "model.num_classes", "model.head_bias", "model.layer_scale"),
    *("model.dropout", "model.attention_dropout", "model.drop_path"),
    *("data.eval_resize", "data.eval_crop", "data.eval_resample", "data.max_pixels"),
}


def model_facts(config: Config, num_classes: int) -> dict[str, Any]:
    return {
        "model": asdict(config.model),
        "num_classes": num_classes,
        "objective": config.objective.name,
        "preprocessing": {key: asdict(config.data)[key] for key in PREPROCESSING},
    }


def difference(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first setting that makes another model of the same weights.

    saved, wanted: `model_facts`. What only one of them knows is not compared: versions differ in it.
    """
    old, new = _settings(saved), _settings(wanted)
    for key in sorted(old.keys() & new.keys() - CHANGEABLE):
        if old[key] != new[key]:
            return key, old[key], new[key]
    return None


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """By key of the configuration; null gives way to what it stands for."""
    groups = {"model": _filled(facts.get("model", {})), "data": facts.get("preprocessing", {})}
    if "objective" in facts:
        groups["objective"] = {"name": facts["objective"]}
    return flat(json.loads(json.dumps(groups)))  # a tuple as the list that it is in a file


def _filled(model: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(ModelConfig)}
    try:
        config = ModelConfig(**{key: value for key, value in model.items() if key in known})
        sizes = asdict(resolve(config))
    except (TypeError, AttributeError, UsageError):  # another version's: compared as it stands
        return model
    return model | {key: value for key, value in sizes.items() if key in model}
