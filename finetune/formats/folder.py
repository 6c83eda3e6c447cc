"""Checkpoints of transformers, timm and Google: what `init=` reads, and what `export` writes.

transformers and timm: a folder with model.safetensors and config.json. Google: one .npz file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from data_tools.errors import DataError, UsageError, UserError
from pretrain.checkpoints.tensor_file import write_tensors
from pretrain.config.schema import DataConfig
from pretrain.model.classifier import Classifier

from . import load_peer, to_peer
from .google import infer_config
from .hf_settings import hf_classes, hf_config, hf_objective, hf_preprocessing, hf_preprocessor
from .names import class_names, tell
from .timm_settings import (
    position_mode,
    timm_arguments_of,
    timm_classes,
    timm_config,
    timm_preprocessing,
    timm_weights,
)

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
HF_FORMATS = {"vit": "hf_vit", "vit-hybrid": "hf_vit_hybrid"}  # by model_type

T = TypeVar("T")


class ForeignModel(NamedTuple):
    """A model of another program, and the keys of `weights_file.FACTS` that describe it."""

    model: Classifier
    facts: dict[str, Any]


def holds_foreign_model(path: Path) -> bool:
    """Whether `path` is a folder with a config.json, a file in such a folder, or an .npz file."""
    return path.exists() and (path.suffix == ".npz" or (_folder(path) / CONFIG).is_file())


def read_folder(path: Path) -> ForeignModel:
    """Load a checkpoint of another program: its folder, the weights file in it, or an .npz file.

    UsageError for one that is not supported, DataError if it is damaged.
    """
    if path.suffix == ".npz":
        return _read_google(path)
    config = _read_json(_folder(path) / CONFIG)
    file = path if path.is_file() else path / WEIGHTS
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: damaged, missing or not a safetensors file: {error}") from None
    if "architecture" in config:
        source, arguments = "timm", _naming_the_file(path, timm_arguments_of, config, weights)
        weights = dict(timm_weights(config, arguments, weights))
        preprocessing = _naming_the_file(path, timm_preprocessing, config)
        classes, objective, resize = timm_classes(config), "softmax", position_mode(config)
    elif config.get("model_type") in HF_FORMATS:
        source, arguments = HF_FORMATS[config["model_type"]], config
        processor = _folder(path) / PREPROCESSOR
        known = _read_json(processor) if processor.is_file() else {}
        preprocessing = _naming_the_file(path, hf_preprocessing, known)
        classes, resize = _naming_the_file(path, hf_classes, config), None
        objective = _naming_the_file(path, hf_objective, config)
    else:
        raise UsageError(
            f"{_folder(path) / CONFIG}: neither timm's (architecture) nor transformers' of model_type "
            f"{' or '.join(HF_FORMATS)}"
        )
    return _checkpoint(path, source, arguments, weights, preprocessing, classes, objective, resize)


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


def _read_google(path: Path) -> ForeignModel:
    try:
        with np.load(path, allow_pickle=False) as archive:
            weights = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: damaged or not an .npz file of plain arrays: {error}") from None
    config = _naming_the_file(path, infer_config, weights)
    return _checkpoint(path, "google", config, weights, {}, None)


def _checkpoint(
    path: Path,
    source: str,
    config: dict[str, Any],
    weights: dict[str, Any],
    preprocessing: dict[str, Any],
    classes: list[str] | None,
    objective: str = "softmax",
    resize: str | None = None,
) -> ForeignModel:
    model = _naming_the_file(path, partial(load_peer, resize=resize), source, config, weights)
    assert isinstance(model, Classifier)
    if not isinstance(model.tile_size, int) or model.encoder.in_channels != 3:
        raise UsageError(f"{path}: only square images of three channels can be fine-tuned")
    model.encoder.mask_token = model.pooler = None
    if classes and model.num_classes and len(classes) != model.num_classes:
        tell(f"{path}: {len(classes)} class names for {model.num_classes} outputs, so the names are left out")
    facts: dict[str, Any] = {
        "step": 0,
        "objective": objective,
        "model": asdict(model.config),
        "num_classes": model.num_classes,
        "classes": classes if classes and len(classes) == model.num_classes else None,
        "preprocessing": {"tile_size": model.tile_size, "max_tiles": 1} | preprocessing,
    }
    facts["preprocessing"] = {"mean": model.mean, "std": model.std} | facts["preprocessing"]
    return ForeignModel(model, facts)


def _naming_the_file(path: Path, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result; its ValueError becomes a UsageError that names the file."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged or not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content
