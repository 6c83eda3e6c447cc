"""A trained run at work: exact evaluation over shards, and predictions for single images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from data_tools.errors import UsageError
from data_tools.images.decode import DecodeError, decode
from data_tools.tile_batch import TileBatch
from pretrain.inputs import eval_transform

from .source import open_source


def predict_images(run: str, images: Sequence[str], topk: int, as_json: bool, weights: str) -> int:
    """Print the likeliest classes of each image, or its numbers.

    Returns the exit code: 3 if an image could not be read, after all others.
    """
    source = open_source(run, weights)
    if source.objective == "masked_patches":
        raise UsageError(
            f"{run}: it was trained to guess colours of masked patches and knows no classes: "
            "fine-tune it first"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = source.load(device)
    data = source.data
    transform = eval_transform(data)
    code = 0
    for path in images:
        try:
            pixels = decode(Path(path).read_bytes(), data.max_pixels)
        except (OSError, DecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"error: {path}: {reason}", file=sys.stderr)
            code = 3
            continue
        tiles, rows, columns = transform(pixels, 0)
        with torch.inference_mode():
            outputs = model(_single(tiles, rows, columns).to(device))[0]
        if source.objective == "regression":
            numbers = outputs.tolist()
            shown = ", ".join(f"{number:.4g}" for number in numbers)
            print(json.dumps({"image": path, "numbers": numbers}) if as_json else f"{path}: {shown}")
            continue
        probabilities = outputs.softmax(-1)
        best = probabilities.topk(min(topk, len(probabilities)))
        pairs = [
            (source.class_name(int(label)), float(p))
            for p, label in zip(best.values, best.indices, strict=True)
        ]
        if as_json:
            print(json.dumps({"image": path, "classes": dict(pairs)}))
        else:
            print(f"{path}: " + ", ".join(f"{name} {p:.1%}" for name, p in pairs))
    return code


def _single(tiles: torch.Tensor, rows: int, columns: int) -> TileBatch:
    tiles = torch.as_tensor(tiles)
    return TileBatch(
        tiles=tiles,
        tiles_per_image=torch.tensor([len(tiles)]),
        grid=torch.tensor([[rows, columns]]),
        labels=torch.tensor([-1]),
        weight=torch.ones(1),
        position=torch.zeros(1, dtype=torch.int64),
        sample=torch.zeros(1, dtype=torch.int64),
    )
