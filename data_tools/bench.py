"""How fast the input is, stage by stage and without a model, and how far its crops are from Pillow's."""

from __future__ import annotations

import io
import sys
import threading
import time
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image, ImageOps
from yaml import YAMLError

from data_tools.augment.mix import Mix
from data_tools.augment.transforms import Tiles, TrainTransform, fit
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, Share, TrainStream, Transform
from data_tools.errors import UsageError, counted, print_json, print_line, print_result
from data_tools.images.colour import to_srgb
from data_tools.images.decode import DecodeError, Picture, Pixels, open_image
from data_tools.images.jpeg import read_header
from data_tools.shards.names import Shards, written
from data_tools.shards.shard_set import ShardSet

STAGES = ("read", "decode", "augment", "batch")
_BATCH_SIZE = 64
_COMPARED = 64  # images compared with Pillow's


@dataclass
class Recipe:
    """The keys of data and data.augment that change how long an image takes.

    The defaults are those of pretrain.config. Without --config the benchmark uses IMAGENET: random resized
    crops of 224 pixels.
    """

    tile_size: int = 224
    max_tiles: int = 1
    max_pixels: int = 67_108_864
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    flip: bool = False
    randaugment_ops: int = 0
    randaugment_magnitude: int = 10
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


IMAGENET = Recipe(crop_scale=(0.08, 1.0), flip=True)


def bench(path: Shards, *, images: int, threads: int, config: str | None, as_json: bool) -> None:
    """Measure the shards at `path` and print a table, or one JSON object; see measure().

    UsageError for shards or a recipe that cannot be opened, DataError for unreadable images.
    """
    recipe = read_recipe(config) if config else IMAGENET
    shards = ShardSet.open(path)
    for note in shards.notes:
        print_line(f"note: {note}", error=True)
    result = measure(shards, recipe, images, threads)
    if as_json:
        print_json(result)
        return
    rounded = "" if result["images"] == images else f" ({images} in whole batches of {_BATCH_SIZE})"
    measured = f"{counted(result['images'], 'image')}{rounded}"
    print_result(f"{measured}, {counted(threads, 'thread')}, {written(path)}")
    print_result(f"{'stage':8} {'images/s':>10} {'CPU ms/image':>13} {'share':>6}")
    for name, row in {**result["stages"], "total": result["total"]}.items():
        print_result(
            f"{name:8} {row['images_per_s']:10.0f} {row['cpu_ms_per_image']:13.3f} {row['share']:6.1%}"
        )
    print_result(
        f"crops differ from Pillow's by {result['grey_levels_from_pillow']:.3f} grey levels (mean of "
        f"{result['compared']} images)"
    )


def read_recipe(path: str) -> Recipe:
    """The data group of the YAML recipe at `path`; other keys are ignored. UsageError if it is not valid."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        data = content.get("data") or {}
        values = {**data, **(data.get("augment") or {})}
        known = {field.name: values[field.name] for field in fields(Recipe) if field.name in values}
        recipe: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), known))
        return recipe
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such recipe; those that come with the project lie in configs/"
        ) from None
    except (OSError, ValueError, AttributeError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{path} is not a recipe: {' '.join(str(error).split())}") from None


def measure(shards: ShardSet, recipe: Recipe, images: int, threads: int) -> dict[str, Any]:
    """images/s and CPU milliseconds an image, in total and for each stage, and the stages' CPU shares.

    Stages: read (the encoded bytes), decode (header and pixels of the region that is needed), augment
    (choice of the crop, resize and what follows), batch (the rest of the process: order, labels, mixing,
    assembly, passing on). images/s of a stage: what `threads` threads would deliver if they did nothing
    else; their waiting counts, but of the batch stage only CPU time. total: the batches that came out.
    Takes `images` images, rounded up to whole batches of 64. UsageError for less than 1 image or thread.
    """
    if images < 1 or threads < 1:
        raise UsageError(f"--images={images} and --threads={threads} must be at least 1.")
    images = -(-images // _BATCH_SIZE) * _BATCH_SIZE
    transform = TrainTransform(0, recipe.tile_size, recipe.max_tiles, recipe)
    clock = _Clock()
    with TrainStream(
        _TimedShards(shards, clock),  # type: ignore[arg-type]  # passes on all attributes of a ShardSet
        Order(0, len(shards), _BATCH_SIZE),
        _timed(transform, clock),
        Share(_BATCH_SIZE),
        Decoding(recipe.max_pixels, recipe.tile_size, threads),
        batch_size=_BATCH_SIZE,
        mix=Mix(0, recipe.mixup, recipe.cutmix) if recipe.mixup or recipe.cutmix else None,
    ) as stream:
        for _ in islice(stream, 2):  # not measured: imports, the start of threads and decoders
            pass
        clock.reset()
        cpu, start = time.process_time(), time.perf_counter()
        for _ in islice(stream, images // _BATCH_SIZE):
            pass
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    done, spent = clock.images, dict(clock.cpu)
    spent["batch"] = max(0.0, cpu - sum(spent.values()))
    busy = {**clock.wall, "batch": spent["batch"]}
    stages = {
        name: {
            "images_per_s": done * threads / max(busy[name], 1e-9),
            "cpu_ms_per_image": spent[name] / done * 1000,
            "share": spent[name] / cpu,
        }
        for name in STAGES
    }
    samples = range(min(_COMPARED, len(shards)))
    found = [distance_from_pillow(shards.read(i), transform, i, recipe.max_pixels) for i in samples]
    distances = [distance for distance in found if distance is not None]
    return {
        "images": images,
        "threads": threads,
        "stages": stages,
        "total": {"images_per_s": images / wall, "cpu_ms_per_image": cpu / done * 1000, "share": 1.0},
        "grey_levels_from_pillow": float(np.mean(distances)) if distances else 0.0,
        "compared": len(distances),
    }


def distance_from_pillow(
    data: bytes, transform: TrainTransform, position: int, max_pixels: int = sys.maxsize
) -> float | None:
    """Mean absolute difference in grey levels between our resized crop and Pillow's.

    Pillow decodes the whole image, converts it to sRGB, turns it upright, crops it and resizes it with its
    antialiased bicubic filter. None for anything but a plain JPEG, because Pillow decodes it for us too, and
    for unreadable images.
    """
    if read_header(data) is None:
        return None
    try:
        picture = open_image(data, max_pixels)
        box = transform.box(picture.height, picture.width, transform.draws(position))
        pixels = picture.region(*box)
    except DecodeError:
        return None
    ours = fit(pixels, transform.tile_size, transform.max_tiles)[0].transpose(1, 2, 0)
    top, left, height, width = box
    with Image.open(io.BytesIO(data)) as image:
        whole = to_srgb(image, image.info.get("icc_profile")).convert("RGB")
        whole.info = image.info  # the EXIF block
        cropped = ImageOps.exif_transpose(whole).crop((left, top, left + width, top + height))
    theirs = np.asarray(cropped.resize(ours.shape[1::-1], Image.Resampling.BICUBIC))
    return float(np.abs(ours.astype(np.int16) - theirs).mean())


class _Clock:
    """Seconds of wall time and of CPU time that all threads together spent in each stage."""

    def __init__(self) -> None:
        self._lock, self._thread = threading.Lock(), threading.local()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self.wall, self.cpu, self.images = (
                dict.fromkeys(STAGES[:3], 0.0),
                dict.fromkeys(STAGES[:3], 0.0),
                0,
            )

    def start(self) -> None:
        self._thread.wall, self._thread.cpu = time.perf_counter(), time.thread_time()

    def stop(self, stage: str, images: int = 0) -> None:
        """Add the time since this thread's last start() or stop() to `stage`."""
        wall, cpu = self._thread.wall, self._thread.cpu
        self.start()
        with self._lock:
            self.wall[stage] += self._thread.wall - wall
            self.cpu[stage] += self._thread.cpu - cpu
            self.images += images


class _TimedShards:
    """A ShardSet whose reading is timed."""

    def __init__(self, shards: ShardSet, clock: _Clock) -> None:
        self._shards, self._clock = shards, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shards, name)

    def read(self, i: int, chunk: int | None = None) -> bytes:
        self._clock.start()
        data = self._shards.read(i, chunk)
        self._clock.stop("read")
        return data


class _TimedPicture:
    """A Picture whose decoding is timed."""

    def __init__(self, picture: Picture, clock: _Clock) -> None:
        self._picture, self._clock = picture, clock
        self.height, self.width = picture.height, picture.width

    def region(self, top: int, left: int, height: int, width: int) -> Pixels:
        self._clock.stop("augment")
        pixels = self._picture.region(top, left, height, width)
        self._clock.stop("decode")
        return pixels


def _timed(transform: TrainTransform, clock: _Clock) -> Transform:
    def run(picture: Picture, position: int) -> Tiles:
        clock.stop("decode")  # the time since the bytes were read went into the header
        tiles = transform(_TimedPicture(picture, clock), position)
        clock.stop("augment", images=1)
        return tiles

    return run
