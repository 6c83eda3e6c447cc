"""Trained weights to start from, wherever they lie: a run, one of its checkpoints, an exported file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_tools.errors import DataError, UsageError
from data_tools.shards.class_names import plain_names
from pretrain.checkpoints.checkpoint import Checkpoint, complete, is_checkpoint, open_checkpoint
from pretrain.checkpoints.foreign import format_of
from pretrain.checkpoints.weights_file import FACTS, METADATA_KEY
from pretrain.config.schema import Config, DataConfig, ModelConfig, ObjectiveConfig
from pretrain.model.build import Model, build_model

from .formats.folder import holds_foreign_model, read_folder


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of a trained model, and what is needed to use them.

    name: the file or folder that they come from; facts: the keys of `weights_file.FACTS`; shapes: of the
    parameters, by name; read(name): one of them, fp32.
    """

    name: str
    facts: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def __post_init__(self) -> None:
        # Earlier versions saved names as they found them.
        self.facts["classes"] = plain_names(self.facts["classes"])

    @property
    def data(self) -> DataConfig:
        """The preprocessing that the weights were trained with."""
        known: dict[str, Any] = self.facts["preprocessing"]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return DataConfig(**values)

    @property
    def objective(self) -> str:
        """The objective of training, as `objective.name` of a recipe."""
        return self.facts.get("objective", "softmax")

    def build(self) -> Model:
        """The model without its weights, on the current default device."""
        config = Config(
            model=ModelConfig(**self.facts["model"]),
            data=self.data,
            objective=ObjectiveConfig(name=self.objective),
        )
        return build_model(config, self.facts["num_classes"])

    def load(self, device: torch.device) -> Model:
        """The model with its weights, in evaluation mode."""
        with torch.device("meta"):
            model = self.build()
        state = {name: self.read(name) for name in self.shapes}
        model.load_state_dict(state, strict=True, assign=True)
        return model.to(device).eval()

    def class_name(self, label: int) -> str:
        """The name of class `label`, or its number where nobody named the classes."""
        classes = self.facts["classes"]
        return classes[label] if classes and label < len(classes) else str(label)


def open_source(init: str, weights: str = "auto") -> TrainedWeights:
    """Open the trained weights that `init` names.

    init: a run folder, of which the newest checkpoint with undamaged files is taken; a checkpoint folder; a
    file of `finetune export`; a folder of transformers or timm, or its safetensors file; or an .npz file of
    Google's. weights: as in `Checkpoint.weights`.

    Raises UsageError if it is none of them, DataError if it is damaged.
    """
    path = Path(init)
    if path.is_file() and not _is_ours(path) and holds_foreign_model(path):
        return _from_other_program(path)
    if path.is_file():
        if weights == "ema":
            raise UsageError(f"{init}: a file has one set of weights; ema is chosen when it is written")
        return _from_file(path)
    if holds_foreign_model(path) and not (path / "manifest.json").is_file():
        return _from_other_program(path)
    if not is_checkpoint(path) and not complete(path / "checkpoints"):
        _refuse_pickles(path)
    return _from_checkpoint(open_checkpoint(path), weights)


def _refuse_pickles(path: Path) -> None:
    """If DeepSpeed or torch's DCP wrote this folder, raise UsageError saying how to get its weights out."""
    try:
        kind = format_of(path)
    except UsageError:
        return
    raise UsageError(
        f"{path}: a {kind} checkpoint, which holds pickles: write its weights as a file first, "
        f"python -m pretrain.checkpoints import {path} FILE.safetensors CONFIG --trust-pickle, "
        f"and give that file"
    )


def _from_checkpoint(checkpoint: Checkpoint, weights: str) -> TrainedWeights:
    keys = checkpoint.weights(weights)
    shapes = {name: checkpoint.tensors[key] for name, key in keys.items()}
    optional = {"objective"} - checkpoint.state.keys()
    facts = {key: checkpoint.state[key] for key in FACTS if key not in optional}
    return TrainedWeights(str(checkpoint.path), facts, shapes, lambda name: checkpoint.whole(keys[name]))


def _from_other_program(path: Path) -> TrainedWeights:
    model, facts = read_folder(path)
    state = dict(model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return TrainedWeights(str(path), facts, shapes, lambda name: state[name].detach().float())


def _is_ours(path: Path) -> bool:
    try:
        return METADATA_KEY in (safe_open(path, "pt").metadata() or {})
    except (OSError, SafetensorError):
        return False


def _from_file(path: Path) -> TrainedWeights:
    try:
        file = safe_open(path, "pt")
        facts = json.loads((file.metadata() or {})[METADATA_KEY])
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise UsageError(
            f"{path}: not a file that `python -m finetune export` wrote, and without a config.json of "
            "transformers or timm beside it"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: damaged or not a safetensors file: {error}") from None
    return TrainedWeights(str(path), facts, shapes, lambda name: file.get_tensor(name).float())
