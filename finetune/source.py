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

from data_tools.errors import DataError, UsageError, shown
from data_tools.shards.class_names import plain_names
from data_tools.shards.urls import is_url
from pretrain.checkpoints.checkpoint import Checkpoint, complete, is_checkpoint, open_checkpoint
from pretrain.checkpoints.described import LARGEST_RESIZE, check_sizes, read_facts
from pretrain.checkpoints.foreign import format_of
from pretrain.checkpoints.weights_file import FACTS, METADATA_KEY
from pretrain.config.schema import Config, DataConfig, ModelConfig, ObjectiveConfig
from pretrain.model.build import Model, build_model

from .formats.files import check_floats, find_files, is_pickle, pickles_in, refuse_pickle
from .formats.folder import read_folder
from .formats.hub import download, is_hub_name


@dataclass(frozen=True)
class TrainedWeights:
    """The weights of a trained model, and what is needed to use them.

    name: the file or folder that they come from; facts: the keys of `weights_file.FACTS`; shapes: of the
    parameters, by name; read(name): one of them, fp32; notes: sentences about what was taken or left out,
    which the user should see.
    """

    name: str
    facts: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    notes: tuple[str, ...] = ()

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
        """The model with its weights, in evaluation mode. Raises UsageError as `check`."""
        with torch.device("meta"):
            model = self.build()
        self.check(model)
        state = {name: self.read(name) for name in self.shapes}
        model.load_state_dict(state, strict=True, assign=True)
        return model.to(device).eval()

    def check(self, model: Model, ignore: str = "") -> None:
        """Raises UsageError that names the first parameter that only `model` or these weights have.

        model: as `build` makes it. ignore: the beginning of names that are not compared, if not empty.
        """
        wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        names = {name for name in wanted.keys() | self.shapes if not ignore or not name.startswith(ignore)}
        missing, surplus = sorted(names - self.shapes.keys()), sorted(names - wanted.keys())
        if missing or surplus:
            lacks = f"lacks {missing[0]}" if missing else ""
            has = f"holds {surplus[0]}, which its model does not know" if surplus else ""
            raise UsageError(f"{self.name}: it {' and '.join(filter(None, (lacks, has)))}", shared=True)
        for name in sorted(names):
            if wanted[name] != self.shapes[name]:
                raise UsageError(
                    f"{self.name}: {name} has shape {list(self.shapes[name])}, but by its own description "
                    f"{list(wanted[name])}",
                    shared=True,
                )


def open_source(init: str, weights: str = "auto") -> TrainedWeights:
    """Open the trained weights that `init` names.

    init: a run folder, of which the newest checkpoint with undamaged files is taken; a checkpoint folder; a
    file of `finetune export`; a folder of transformers or timm, or its safetensors file; an .npz file of
    Google's; or a model's name on the Hugging Face hub. weights: as in `Checkpoint.weights`.

    Raises UsageError if it is none of them, DataError if it is damaged.
    """
    path = Path(init)
    if is_hub_name(init):
        path = download(init)
    elif is_url(init):
        raise UsageError(f"{shown(init)}: weights are not read from URLs: download them, and give the file")
    if path.is_file() and is_pickle(path):
        refuse_pickle(path)
    if path.is_file() and path.suffix not in (".npz", ".json") and (facts := _own_facts(path)) is not None:
        if weights == "ema":
            raise UsageError(f"{init}: a file has one set of weights; ema is chosen when it is written")
        return _from_file(path, facts)
    ours = path.is_dir() and (is_checkpoint(path) or complete(path / "checkpoints"))
    if not ours and find_files(path):
        return _from_other_program(path)
    if path.is_file():
        raise UsageError(
            f"{path}: not a file that `python -m finetune export` wrote, and without a config.json of "
            'transformers or timm beside it; for a model of timm write one, such as {"architecture": '
            '"vit_base_patch16_224"}'
        )
    if not ours:
        _refuse_pickled_folder(path)
    return _from_checkpoint(open_checkpoint(path), weights)


def _own_facts(path: Path) -> str | None:
    """What a file of `finetune export` says about its model; None for a file of another program."""
    with _opened(path) as file:
        return (file.metadata() or {}).get(METADATA_KEY)


def _from_file(path: Path, text: str) -> TrainedWeights:
    facts = read_facts(text, str(path))
    file = _opened(path)
    check_floats(path, file)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return _checked(str(path), facts, shapes, lambda name: file.get_tensor(name).float())


def _from_checkpoint(checkpoint: Checkpoint, weights: str) -> TrainedWeights:
    keys = checkpoint.weights(weights)
    shapes = {name: checkpoint.tensors[key] for name, key in keys.items()}
    optional = {"objective"} - checkpoint.state.keys()
    text = json.dumps({key: checkpoint.state[key] for key in FACTS if key not in optional})
    facts = read_facts(text, f"{checkpoint.path}/state.json")
    return _checked(str(checkpoint.path), facts, shapes, lambda name: checkpoint.whole(keys[name]))


def _from_other_program(path: Path) -> TrainedWeights:
    model, facts, notes = read_folder(path)
    state = dict(model.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return _checked(str(path), facts, shapes, lambda name: state[name].detach().float(), notes)


def _checked(
    name: str,
    facts: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    notes: tuple[str, ...] = (),
) -> TrainedWeights:
    """The weights, once their sizes are known to fit; a value that is no finite number is found when read."""

    def finite(parameter: str) -> Tensor:
        value = read(parameter)
        if not torch.isfinite(value).all():
            raise DataError(f"{name}: {parameter} holds values that are no finite numbers", shared=True)
        return value

    known = facts["preprocessing"]
    tile_size, tiles, resize = known["tile_size"], known["max_tiles"], known.get("eval_resize", 0)
    try:
        check_sizes(ModelConfig(**facts["model"]), tile_size, tiles, facts["num_classes"], 3, shapes)
        if resize > LARGEST_RESIZE * tile_size:
            raise UsageError(f"its images would be resized to {resize} pixels before a crop of {tile_size}")
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return TrainedWeights(name, facts, shapes, finite, notes)


def _refuse_pickled_folder(path: Path) -> None:
    """UsageError with the way out for a folder of pickles: of torch.save, DeepSpeed or torch's DCP."""
    try:
        kind = format_of(path)
    except UsageError:
        if pickles := pickles_in(path):
            refuse_pickle(*pickles)
        if others := sorted(path.glob("*.safetensors")):
            raise UsageError(
                f"{path}: it has {others[0].name}, but no config.json of transformers or timm"
            ) from None
        return
    raise UsageError(
        f"{path}: a {kind} checkpoint, which holds pickles: write its weights as a file first, "
        f"python -m pretrain.checkpoints import {path} FILE.safetensors CONFIG --trust-pickle, "
        f"and give that file"
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: damaged or not a safetensors file: {error}") from None
