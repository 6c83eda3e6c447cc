"""What is saved beside a model's weights because they need it: its configuration and preprocessing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
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

# What may change when a run resumes: dropout, initial values, how images are evaluated. model.name and
# model.num_classes need no check here: the sizes that the name stands for, and the classes, are compared.
CHANGEABLE = {
    *("model.name", "model.num_classes", "model.head_bias", "model.layer_scale"),
    *("model.dropout", "model.attention_dropout", "model.drop_path"),
    *("data.eval_resize", "data.eval_crop", "data.eval_resample", "data.max_pixels"),
}


def model_facts(config: Config, num_classes: int) -> dict[str, Any]:
    """What state.json and weights files say about the model; num_classes: outputs of its head."""
    return {
        "model": asdict(config.model),
        "num_classes": num_classes,
        "objective": config.objective.name,
        "preprocessing": {key: asdict(config.data)[key] for key in PREPROCESSING},
    }


def distinct_names(classes: Sequence[str] | None, count: int) -> list[str]:
    """One name for each of `count` classes, no two alike, so that names may be keys.

    A name that several classes have is followed by the number of the class, as in "crane (134)"; a class
    without a name is called by its number.
    """
    given = list(classes or ())[:count]
    often = Counter(given)
    names: list[str] = []
    taken = set(given)
    for label in range(count):
        name = given[label] if label < len(given) else str(label)
        if label >= len(given) or often[name] > 1:
            while name in taken:
                name = f"{name} ({label})"
            taken.add(name)
        names.append(name)
    return names


def difference(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, saved value, wanted value) of the first setting that makes a different model of the same weights.

    saved, wanted: as `model_facts` returns. None if there is no such setting. A key that only one of them has
    is not compared: it was added or removed by another version of this software.
    """
    old, new = _settings(saved), _settings(wanted)
    for key in sorted(old.keys() & new.keys() - CHANGEABLE):
        if old[key] != new[key]:
            return key, old[key], new[key]
    return None


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """{key of the configuration: value}, with the values that null stands for."""
    groups = {"model": _filled(facts.get("model", {})), "data": facts.get("preprocessing", {})}
    if "objective" in facts:
        groups["objective"] = {"name": facts["objective"]}
    return flat(json.loads(json.dumps(groups)))  # tuples become lists, as in a file


def _filled(model: dict[str, Any]) -> dict[str, Any]:
    """`model` with the sizes that the model's name stands for where it has null."""
    known = {field.name for field in fields(ModelConfig)}
    try:
        config = ModelConfig(**{key: value for key, value in model.items() if key in known})
        sizes = asdict(resolve(config))
    except (TypeError, AttributeError, UsageError):  # written by another version: compared unchanged
        return model
    return model | {key: value for key, value in sizes.items() if key in model}
