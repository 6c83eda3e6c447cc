"""Checkpoints of transformers, timm and Google: what `init=` reads, and what `export` writes.

transformers and timm: a folder with config.json and model.safetensors, which may be in parts. Google: one
.npz file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from data_tools.errors import DataError, UsageError, UserError
from pretrain.checkpoints.tensor_file import write_tensors
from pretrain.config.schema import DataConfig
from pretrain.model.classifier import Classifier

from . import load_peer, to_peer
from .descriptions import AnyDescription, HfDescription, HfPreprocessor, TimmDescription
from .entries import Weights
from .files import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    find_files,
    read_arrays,
    read_description,
    read_tensors,
)
from .google import infer_config
from .hf_settings import hf_classes, hf_config, hf_objective, hf_preprocessing, hf_preprocessor
from .names import class_names
from .timm_settings import (
    position_mode,
    stated_pool,
    timm_arguments_of,
    timm_classes,
    timm_config,
    timm_preprocessing,
    timm_weights,
)

HF_FORMATS = {"vit": "hf_vit", "vit-hybrid": "hf_vit_hybrid"}  # by model_type
# Before the names of tensors: what DataParallel, torch.compile and training scripts put there.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
NO_OBJECTIVE = "it does not say what its outputs mean: they are taken for scores of classes under a softmax"

T = TypeVar("T")


class ForeignModel(NamedTuple):
    """A model of another program, and the keys of `weights_file.FACTS` that describe it.

    notes: sentences about what was taken or left out.
    """

    model: Classifier
    facts: dict[str, Any]
    notes: tuple[str, ...]


class Description(NamedTuple):
    """What the files of a checkpoint say beside its weights: `facts` without the model, and notes as above.

    load(weights): the model that they describe.
    """

    load: Callable[[Weights], nn.Module]
    facts: dict[str, Any]
    notes: tuple[str, ...]


def read_folder(path: Path) -> ForeignModel:
    """Load a checkpoint of another program, whose files are those of `find_files`.

    A prefix of PREFIXES before the names of tensors is removed where the weights then fit, which a note says.
    Raises UsageError for one that is not supported, DataError if it is damaged.
    """
    files = find_files(path)
    if files is None:
        raise UsageError(f"{path}: it has no {CONFIG} of transformers or timm")
    if files.folder is None:
        weights: dict[str, Any] = read_arrays(path)
        facts = {"objective": "softmax", "classes": None}
        given = Description(_load_google, facts, (NO_OBJECTIVE,))
    else:
        given = _describe(files.folder)
        weights = read_tensors(files)
    forms = list(without_prefixes(weights))
    errors = []
    for removed, form in forms:
        try:
            model = _naming_the_file(path, given.load, form)
        except UsageError as error:
            errors.append(error)
        else:
            note = f"the prefix {removed!r} before the names of its tensors was removed"
            notes = (*given.notes, *((note,) if removed else ()))
            assert isinstance(model, Classifier)
            return _foreign_model(path, model, given._replace(notes=notes))
    # A prefix that all names have belongs to none of them: what is wrong beside it says the last error.
    everywhere = all(name.startswith(forms[-1][0]) for name in weights)
    raise errors[-1 if everywhere else 0]


def without_prefixes(weights: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was removed, the weights by the names that are left), beginning with the weights as they are.

    Each further form lacks one more of PREFIXES, where names have it and stay different.
    """
    removed, names = "", {name: name for name in weights}
    while True:
        yield removed, {short: weights[name] for name, short in names.items()}
        prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in names.values())), "")
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
        if not prefix or len(set(names.values())) < len(names):
            return
        removed += prefix


def _describe(folder: Path) -> Description:
    """The description of a model in a folder of timm or transformers."""
    kind = read_description(folder / CONFIG, AnyDescription)
    if "architecture" in kind:
        config = read_description(folder / CONFIG, TimmDescription)
        known = _naming_the_file(folder, timm_preprocessing, config)
        facts: dict[str, Any] = {"preprocessing": known.data, "classes": timm_classes(config)}
        facts |= {"objective": config.get("objective") or "softmax"}
        notes = known.notes if config.get("objective") else (*known.notes, NO_OBJECTIVE)
        if pool := _naming_the_file(folder, stated_pool, config):
            notes += (
                f"it pools by {pool!r}, as its config.json says, which is not usual for its architecture",
            )
        return Description(partial(_load_timm, config), facts, notes)
    if kind.get("model_type") not in HF_FORMATS:
        raise UsageError(
            f"{folder / CONFIG}: neither timm's (architecture) nor transformers' of model_type "
            f"{' or '.join(HF_FORMATS)}"
        )
    config = read_description(folder / CONFIG, HfDescription)
    missing: tuple[str, ...] = ()
    processor: dict[str, Any] = {}
    if (folder / PREPROCESSOR).is_file():
        processor = read_description(folder / PREPROCESSOR, HfPreprocessor)
    else:
        missing = (f"it has no {PREPROCESSOR}: the defaults of transformers' ViTImageProcessor are taken",)
    size = config.get("image_size", 224)
    known = _naming_the_file(folder / PREPROCESSOR, hf_preprocessing, processor, size)
    facts = {"preprocessing": known.data, "classes": _naming_the_file(folder / CONFIG, hf_classes, config)}
    facts |= {"objective": _naming_the_file(folder / CONFIG, hf_objective, config)}
    load = partial(load_peer, HF_FORMATS[config["model_type"]], config)
    return Description(load, facts, missing + known.notes)


def _load_google(weights: Weights) -> nn.Module:
    return load_peer("google", infer_config(weights), weights)


def _load_timm(config: dict[str, Any], weights: Weights) -> nn.Module:
    arguments = timm_arguments_of(config, weights)
    taken = timm_weights(config, arguments, weights)
    return load_peer("timm", arguments, taken, resize=position_mode(config))


def write_folder(
    name: str, model: nn.Module, facts: dict[str, Any], program: str, destination: Path
) -> dict[str, torch.Tensor]:
    """Write `model` as a folder that `program`, hf (transformers) or timm, reads; returns its tensors.

    name: what error messages call the model; facts: the keys of `weights_file.FACTS`. UsageError for what
    the program cannot express; nothing is written then.
    """
    if destination.exists():
        raise UsageError(f"{destination} exists: choose a folder that does not")
    if not destination.parent.is_dir():
        raise UsageError(f"{destination.parent}: no such folder; make it first")
    if not isinstance(model, Classifier):
        raise UsageError(f"{name}: it was trained to guess colours of masked patches: fine-tune it first")
    hybrid = model.config.name.startswith("hybrid")
    target = "timm" if program == "timm" else "hf_vit_hybrid" if hybrid else "hf_vit"
    try:
        config, weights = to_peer(model, target)
        if program == "timm":
            files = {CONFIG: timm_config(config, facts)}
        else:
            files = {CONFIG: hf_config(config, facts), PREPROCESSOR: hf_preprocessor(facts, hybrid)}
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    temporary = destination.with_name(destination.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    write_tensors(temporary / WEIGHTS, shapes, weights.__getitem__, {"format": "pt"})
    for file, content in files.items():
        (temporary / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    try:
        _check_what_was_written(temporary, model, facts)
    except (ValueError, UserError) as error:
        shutil.rmtree(temporary)
        raise DataError(f"{name}: what was written for {program} is not the same model: {error}") from None
    os.replace(temporary, destination)
    return weights


def _check_what_was_written(folder: Path, model: Classifier, facts: dict[str, Any]) -> None:
    """ValueError if the folder, read by the rules of its format, is not `model` with these facts."""
    read = read_folder(folder)
    expected, found = model.state_dict(), read.model.state_dict()
    if found.keys() != expected.keys():
        raise ValueError(f"{min(found.keys() ^ expected.keys())} is in only one of the two")
    for name, value in expected.items():
        if not torch.equal(found[name].view(torch.int32), value.view(torch.int32)):  # NaN is equal to itself
            raise ValueError(f"{name} has other values")
    if (named := class_names(facts)) and read.facts["classes"] != named:
        raise ValueError("the names of its classes differ")
    before, after = (_preprocessing(known["preprocessing"]) for known in (facts, read.facts))
    if before.keys() != after.keys() or not all(np.allclose(before[key], after[key]) for key in before):
        raise ValueError(f"its images are prepared otherwise: {after}, not {before}")


def _preprocessing(known: dict[str, Any]) -> dict[str, Any]:
    """What evaluation does to an image, as numbers; known: keys of `data`."""
    data = DataConfig(**{key: value for key, value in known.items() if key != "augment"})
    short = (data.eval_resize or data.tile_size) if data.eval_crop else 0
    bicubic = data.eval_resample == "bicubic"
    return {"side": data.tile_size, "short": short, "bicubic": bicubic, "mean": data.mean, "std": data.std}


def _foreign_model(path: Path, model: Classifier, given: Description) -> ForeignModel:
    if not isinstance(model.tile_size, int) or model.encoder.in_channels != 3:
        raise UsageError(f"{path}: only square images of three channels can be fine-tuned")
    model.encoder.mask_token = model.pooler = None
    classes = given.facts["classes"]
    preprocessing = {"tile_size": model.tile_size, "max_tiles": 1, "mean": model.mean, "std": model.std}
    facts = given.facts | {
        "step": 0,
        "model": asdict(model.config),
        "num_classes": model.num_classes,
        "classes": classes if classes and len(classes) == model.num_classes else None,
        "preprocessing": preprocessing | given.facts.get("preprocessing", {}),
    }
    notes = given.notes if model.num_classes else tuple(n for n in given.notes if n != NO_OBJECTIVE)
    if classes and facts["classes"] is None and model.num_classes:
        notes += (f"it names {len(classes)} classes, but has {model.num_classes}: the names are not used",)
    return ForeignModel(model, facts, notes)


def _naming_the_file(path: Path, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result; what is wrong in its arguments, which a stranger wrote, becomes a UsageError."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise UsageError(f"{path}: its weights and its description do not fit each other: {error}") from None
