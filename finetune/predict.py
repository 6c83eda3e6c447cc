"""Predictions and features of a trained run for single images, from Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data_tools.errors import DataError, UsageError
from data_tools.images.decode import DecodeError, decode
from data_tools.tile_batch import TileBatch
from pretrain.checkpoints.facts import distinct_names
from pretrain.config.schema import DataConfig
from pretrain.inputs import eval_transform
from pretrain.model.classifier import Classifier
from pretrain.model.inspection import features
from pretrain.model.variants import resolve
from pretrain.objective import probabilities

from .source import TrainedWeights, open_source


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one image.

    classes: (name, probability), the likeliest first; no two names are alike (see `distinct_names`). The
    probabilities of a model trained by sigmoid are of each class by itself. numbers: the outputs of a
    regression, whose classes are empty.
    """

    classes: tuple[tuple[str, float], ...] = ()
    numbers: tuple[float, ...] = ()

    @property
    def best(self) -> str:
        """The name of the likeliest class; IndexError for a regression."""
        return self.classes[0][0]


@dataclass(frozen=True)
class TrainedRun:
    """Trained weights ready to use: `model`, on `device`, takes a TileBatch or images of one tile."""

    source: TrainedWeights
    model: Classifier
    device: torch.device

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, by label; None if the training data had none."""
        return self.source.facts["classes"]

    @cached_property
    def class_names(self) -> list[str]:
        """A name for each class, no two alike; see `distinct_names`."""
        return distinct_names(self.classes, self.source.facts["num_classes"])

    @property
    def preprocessing(self) -> DataConfig:
        """How images become the model's input: tile size, resizing, mean, std and so on."""
        return self.source.data

    def predict(self, images: Iterable[str | Path | bytes], topk: int = 3) -> list[Prediction]:
        """The `topk` likeliest classes, or the numbers, of each image.

        images: paths, or the bytes of image files. Raises DataError for one that cannot be read, naming it.
        """
        return [self._predict(image, topk) for image in images]

    @torch.inference_mode()
    def embed(self, images: Iterable[str | Path | bytes], layer: int | None = None) -> Tensor:
        """The features of each image, float32 (N, D); layer: as in `inspection.features`.

        images: as in `predict`, with the same DataError.
        """
        found = [features(self.model, self.transform(image).to(self.device), layer) for image in images]
        return torch.cat(found).cpu() if found else torch.empty(0, resolve(self.model.config).embed_dim)

    @torch.inference_mode()
    def _predict(self, image: str | Path | bytes, topk: int) -> Prediction:
        outputs = self.model(self.transform(image).to(self.device))[0]
        if not torch.isfinite(outputs).all():
            raise DataError(f"{self.source.name}: its outputs for {_name(image)} are no finite numbers")
        if self.source.objective == "regression":
            return Prediction(numbers=tuple(outputs.tolist()))
        best = probabilities(outputs, self.source.objective).topk(min(topk, len(outputs)))
        names, pairs = self.class_names, zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Prediction(classes=tuple((names[label], p) for label, p in pairs))

    def transform(self, image: str | Path | bytes) -> TileBatch:
        """An image as the model takes it, a batch of one; DataError as in `predict`."""
        name = _name(image)
        data = self.preprocessing
        try:
            content = image if isinstance(image, bytes) else Path(image).read_bytes()
            pixels = decode(content, data.max_pixels)
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from None
        except DecodeError as error:
            raise DataError(f"{name}: {error}") from None
        tiles, rows, columns = eval_transform(data)(pixels, 0)
        return _single(torch.as_tensor(tiles), rows, columns)


def open_run(path: str | Path, weights: str = "auto", device: str | torch.device | None = None) -> TrainedRun:
    """Open a run folder, a checkpoint folder, an exported file or a checkpoint of transformers or timm.

    weights: auto (averaged if the run kept averages), ema (averaged) or last (as trained). device: None for a
    GPU where there is one. Raises UsageError for what is none of them or knows no classes, DataError for
    damaged files.
    """
    source = open_source(str(path), weights)
    if source.objective == "masked_patches":
        raise UsageError(
            f"{path}: it was trained to guess colours of masked patches and knows no classes: "
            "fine-tune it first"
        )
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = source.load(chosen)
    assert isinstance(model, Classifier)
    return TrainedRun(source, model, chosen)


def _name(image: str | Path | bytes) -> str:
    return "image" if isinstance(image, bytes) else str(image)


def _single(tiles: Tensor, rows: int, columns: int) -> TileBatch:
    return TileBatch(
        tiles=tiles,
        tiles_per_image=torch.tensor([len(tiles)]),
        grid=torch.tensor([[rows, columns]]),
        labels=torch.tensor([-1]),
        weight=torch.ones(1),
        position=torch.zeros(1, dtype=torch.int64),
        sample=torch.zeros(1, dtype=torch.int64),
    )
