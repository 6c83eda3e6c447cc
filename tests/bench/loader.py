"""CPU time an image of our loader against the pipeline that open_clip uses, in one interleaved run.

    python tests/bench/loader.py PHOTOS.zip [--rounds 5] [--quick]
    python tests/bench/loader.py --memory [--quick]

The photos are packed into shards with the webdataset library. Every loader then reads the same shards.
The peer is webdataset + Pillow + float32, as open_clip and timm do it: decode, convert, crop, antialiased
bicubic resize to 224 (or to the canvas of 2x2 tiles of 224 that suits the photo), mirror, to float32,
normalise, collate; with two worker processes that send their batches, as open_clip runs it, and without.
Ours gives uint8, normalised on the device. Times are CPU seconds of all threads and processes, the median
over rounds in shuffled order. --memory prints the time to the first batch of a fresh and of a resumed stream,
and the resident memory along 20,000 batches of small images.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_tools.augment.transforms import Tiles, TrainTransform, crop_box
from data_tools.batches.order import Order
from data_tools.batches.stream import Decoding, Share, TrainStream
from data_tools.images import jpeg
from data_tools.images.decode import Picture, open_image
from data_tools.images.tiles import choose_canvas, fitted_size
from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet
from pretrain.config.schema import AugmentConfig

SIZE, BATCH, SMALL_BATCH, MAX_PIXELS = 224, 64, 16, 67_108_864
CROP = AugmentConfig(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=True)
TILES = AugmentConfig(flip=True)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
TARGETS = {
    "crop: peer, 2 workers": 2.5,
    "crop: peer, in one process": 2.5,
    "tiles: peer, 2 workers": 1.7,
    "tiles: peer, in one process": 1.7,
    "read: peer": 5.0,
}
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def pack(source: str, folder: Path, photos: int | None = None) -> ShardSet:
    """Shards of the photos in a zip file, each with label 0, written with the webdataset library."""
    with (
        zipfile.ZipFile(source) as archive,
        wds.ShardWriter(f"{folder}/%04d.tar", maxsize=2e7, verbose=0) as out,
    ):
        names = [name for name in sorted(archive.namelist()) if name.lower().endswith((".jpg", ".jpeg"))]
        for number, name in enumerate(names[:photos]):
            out.write({"__key__": f"{number:08d}", "jpg": archive.read(name), "cls": "0"})
    (folder / "classes.json").write_text('["photo"]')
    build_index(folder)
    return ShardSet.open(folder)


def ours(shards: ShardSet, augment: AugmentConfig, max_tiles: int, threads: int) -> int:
    """All images twice through TrainStream to uint8 batches; how many, those made ahead included."""
    made: list[int] = []
    transform = TrainTransform(0, SIZE, max_tiles, augment)

    def counted(picture: Picture, position: int) -> Tiles:
        made.append(position)
        return transform(picture, position)

    with TrainStream(
        shards,
        Order(0, len(shards), BATCH),
        counted,
        Share(BATCH),
        Decoding(MAX_PIXELS, SIZE, threads),
        batch_size=BATCH,
    ) as stream:
        for _ in islice(stream, 2 * len(shards) // BATCH):
            pass
    return len(made)


def peer(shards: ShardSet, transform: Callable[[Image.Image], torch.Tensor], workers: int) -> int:
    """All images twice through webdataset, Pillow and float32; how many.

    With workers as open_clip runs it: wds.WebLoader, whose workers send finished batches to this process.
    """
    dataset = (
        wds.WebDataset(tar_files(shards) * 2, shardshuffle=False, workersplitter=wds.split_by_worker)
        .shuffle(256, rng=random.Random(0))
        .decode("pilrgb")
        .rename(image="jpg", label="cls")
        .map_dict(image=transform)
        .to_tuple("image", "label")
        .batched(BATCH)
    )
    loader = wds.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=workers)
    return sum(len(labels) for _, labels in loader)


def peer_crop(image: Image.Image) -> torch.Tensor:
    """torchvision's RandomResizedCrop and what follows it in open_clip, to float32 (3, SIZE, SIZE)."""
    draws = np.random.rand(40)
    top, left, height, width = crop_box(image.height, image.width, CROP.crop_scale, CROP.crop_ratio, draws)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return to_tensor(image)


def peer_tiles(image: Image.Image) -> torch.Tensor:
    """The image on the canvas of at most four tiles that suits it, float32 (4, 3, SIZE, SIZE), padded."""
    rows, columns = choose_canvas(image.height, image.width, SIZE, 4)
    canvas = rows * SIZE, columns * SIZE
    height, width = fitted_size(image.height, image.width, canvas, SIZE)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    padded = torch.zeros(3, *canvas)
    padded[:, :height, :width] = to_tensor(image)
    tiles = padded.view(3, rows, SIZE, columns, SIZE).permute(1, 3, 0, 2, 4).reshape(-1, 3, SIZE, SIZE)
    return torch.cat([tiles, torch.zeros(4 - len(tiles), 3, SIZE, SIZE)])


def to_tensor(image: Image.Image) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return tensor.sub_(MEAN).div_(STD)


def read_ours(shards: ShardSet) -> int:
    order = Order(0, len(shards), BATCH)
    for sample in order.sample_at(np.arange(len(shards))).tolist():
        shards.read(sample), shards.label(sample)
    return len(shards)


def read_peer(shards: ShardSet) -> int:
    return sum(1 for _ in wds.WebDataset(tar_files(shards), shardshuffle=False, empty_check=False))


def tar_files(shards: ShardSet) -> list[str]:
    return [str(path) for path in sorted(shards.folder.glob("*.tar"))]


def needed_regions(shards: ShardSet) -> list[tuple[bytes, tuple[int, int, int, int]]]:
    """The bytes of each image and the box of it that its first crop needs."""
    transform = TrainTransform(0, SIZE, 1, CROP)
    regions = []
    for position, sample in enumerate(
        Order(0, len(shards), BATCH).sample_at(np.arange(len(shards))).tolist()
    ):
        data = shards.read(sample)
        picture = open_image(data, MAX_PIXELS)
        box = transform.box(picture.height, picture.width, transform.draws(position))
        if jpeg.decode_region(data, *box) is not None:  # else it is turned by EXIF, and the box with it
            regions.append((data, box))
    return regions


def decode_only(regions: list[tuple[bytes, tuple[int, int, int, int]]]) -> int:
    """Bare decode of the needed regions, from bytes in memory: the limit."""
    for data, box in regions:
        jpeg.decode_region(data, *box)
    return len(regions)


def cpu_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(cases: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds an image of each case in each round; the order of the cases changes."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):  # the first is for imports and caches
        for name in random.sample(list(cases), len(cases)):
            start = cpu_seconds()
            images = cases[name]()
            times[name].append((cpu_seconds() - start) / images * 1000)
    return {name: values[1:] for name, values in times.items()}


def compare(source: str, rounds: int, threads: int, photos: int | None = None) -> None:
    """Print the table of CPU times and the ratios to the peer."""
    with tempfile.TemporaryDirectory() as folder:
        shards = pack(source, Path(folder), photos)
        regions = needed_regions(shards)
        times = measure(
            {
                "crop: peer, 2 workers": lambda: peer(shards, peer_crop, 2),
                "crop: peer, in one process": lambda: peer(shards, peer_crop, 0),
                "crop: ours": lambda: ours(shards, CROP, 1, threads),
                "tiles: peer, 2 workers": lambda: peer(shards, peer_tiles, 2),
                "tiles: peer, in one process": lambda: peer(shards, peer_tiles, 0),
                "tiles: ours": lambda: ours(shards, TILES, 4, threads),
                "read: peer": lambda: read_peer(shards),
                "read: ours": lambda: read_ours(shards),
                "decode: region that the crop needs": lambda: decode_only(regions),
            },
            rounds,
        )
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(shards)} photos, {rounds} rounds, {threads} threads of ours, load {os.getloadavg()[0]:.1f}")
    print(f"{'CPU ms/image':36} {'median':>8} {'min':>8} {'max':>8}")
    for name, values in times.items():
        print(f"{name:36} {median[name]:8.3f} {min(values):8.3f} {max(values):8.3f}")
    print(f"{'times less CPU than':36} {'ratio':>8} {'target':>8}")
    for name, target in TARGETS.items():
        ratio = median[name] / median[name.partition(":")[0] + ": ours"]
        print(f"{name:36} {ratio:8.2f} {target:8.1f}")
    limit = median["crop: ours"] / median["decode: region that the crop needs"]
    print(f"crop: ours is {limit:.2f} times the bare decode of the region that it needs")


def small_photos(folder: Path) -> ShardSet:
    """1,000 noisy JPEGs of 48 to 64 pixels."""
    generator = np.random.default_rng(0)
    with wds.ShardWriter(f"{folder}/%04d.tar", maxcount=250, verbose=0) as out:
        for number in range(1000):
            pixels = generator.integers(0, 255, (48 + number % 17, 64 - number % 13, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG")
            out.write({"__key__": f"{number:08d}", "jpg": buffer.getvalue(), "cls": "0"})
    (folder / "classes.json").write_text('["photo"]')
    build_index(folder)
    return ShardSet.open(folder)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def small_stream(shards: ShardSet, threads: int, start_step: int = 0) -> TrainStream:
    """Batches of 16 images in up to 4 tiles of 32."""
    return TrainStream(
        shards,
        Order(0, len(shards), SMALL_BATCH),
        TrainTransform(0, 32, 4, CROP),
        Share(SMALL_BATCH),
        Decoding(MAX_PIXELS, 32, threads),
        batch_size=SMALL_BATCH,
        start_step=start_step,
    )


def first_batch_ms(shards: ShardSet, threads: int, position: int) -> float:
    """Milliseconds from nothing to the first batch at `position`."""
    start = time.perf_counter()
    with small_stream(shards, threads, position // SMALL_BATCH) as stream:
        next(stream)
        return (time.perf_counter() - start) * 1000


def memory(batches: int, threads: int) -> None:
    """Print the time to the first batch of a fresh and of a resumed stream, and the resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        shards = small_photos(Path(folder))
        times: dict[int, list[float]] = {0: [], 10**9: []}
        for position in [*times] * 30:
            times[position].append(first_batch_ms(shards, threads, position))
        fresh, resumed = (statistics.median(values) for values in times.values())
        print(f"first batch: {fresh:.1f} ms at position 0, {resumed:.1f} ms at position 10^9")
        marks = {batches * part // 10 for part in range(1, 11)} | {1, batches // 100}
        with small_stream(shards, threads) as stream:
            for number, _ in enumerate(islice(stream, batches), 1):
                if number in marks:
                    print(f"batch {number:6d}: resident {resident_mib():7.1f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="?", help="a zip file of JPEG photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round of 64 photos, or 1,000 batches")
    parser.add_argument("--memory", action="store_true", help="resident memory over 20,000 batches")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # as in the workers of torch's DataLoader
    if options.memory:
        memory(1000 if options.quick else 20_000, options.threads)
    elif options.photos:
        rounds, photos = (1, BATCH) if options.quick else (options.rounds, None)
        compare(options.photos, rounds, options.threads, photos)
    else:
        parser.error("give a zip file of photos, or --memory")


if __name__ == "__main__":
    main()
