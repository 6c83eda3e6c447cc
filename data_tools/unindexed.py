"""Training batches from shards that can only be read from front to back.

For web servers that send no parts of files, so that no sample can be read by its offset. Without an
index there is no order by position: a resumed job begins a new pass. Everything else that can be
read by range should be indexed instead.
"""

from __future__ import annotations

import random
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count, islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_tools.batch import BadSample, TileBatch
from data_tools.errors import DataError, UsageError
from data_tools.images import DecodeError, open_image
from data_tools.labels import NO_LABEL
from data_tools.order import hash64, permute
from data_tools.prefetch import Map, Prefetch
from data_tools.remote import patiently, shown
from data_tools.samples import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, parse_label, split_name, unusable
from data_tools.stream import Item, Transform, assemble
from data_tools.tar import scan
from data_tools.windows import WindowedFile

_TIMEOUT, _WINDOW, _ATTEMPTS = 60, 1 << 20, 4  # seconds, bytes, passes over one shard
_MAX_BAD = 100  # samples in a row, as many as TrainStream tries


@dataclass
class _Sample:
    """The members of one key as they come, or why they cannot be used."""

    key: str
    shard: str
    images: list[bytes] = field(default_factory=list)
    labels: dict[str, tuple[int, ...] | str | None] = field(default_factory=dict)
    problem: str = ""
    number: int = 0

    def label(self, num_classes: int) -> int:
        """The one label; DecodeError for a sample that cannot be used."""
        found = self.labels["cls"] if "cls" in self.labels else self.labels.get("json")
        if self.problem or len(self.images) != 1:
            raise DecodeError(self.problem or f"{len(self.images)} images under one key")
        if found is None or isinstance(found, str) or len(found) != 1:
            raise DecodeError(found if isinstance(found, str) else "not one label")
        if found[0] >= num_classes:
            raise DecodeError(f"label {found[0]}, but there are {num_classes} classes")
        return found[0]


class UnindexedStream:
    """The endless training batches of one rank: iterate, then close() (or use it in a `with`).

    Each pass deals the shards anew to the ranks; samples pass through a buffer of `buffer` of them, out
    of which they are drawn at random. An unusable sample is black, has weight 0 and is reported in
    TileBatch.bad; TileBatch.sample is -1. UsageError for fewer shards than ranks or for anything
    but http(s); DataError for a damaged shard, a source that stays away, a pass without a sample and 100
    unusable ones in a row.
    """

    def __init__(
        self,
        urls: list[str],
        transform: Transform,
        *,
        seed: int,
        num_classes: int,
        micro_batch_size: int,
        max_pixels: int,
        tile_size: int,
        rank: int = 0,
        world_size: int = 1,
        first_pass: int = 0,
        threads: int = 4,
        prefetch: int = 2,
        buffer: int = 2000,
        channels: int = 3,
        pin: bool = False,
    ) -> None:
        for url in urls:
            if not url.lower().startswith(("http://", "https://")):
                raise UsageError(f"{shown(url)!r} is not an http(s) URL: index it and read it by range.")
        if len(urls) < world_size:
            raise UsageError(f"{len(urls)} shards are too few for {world_size} processes: each needs one.")
        self._urls, self._transform = urls, transform
        self._seed, self._num_classes, self._max_pixels = seed, num_classes, max_pixels
        self._rank, self._world_size, self._first_pass = rank, world_size, first_pass
        self._tile_shape, self._pin = (channels, tile_size, tile_size), pin
        self._samples, self._lock, self._bad = self._shuffled(buffer), threading.Lock(), 0
        self._failure: Exception | None = None
        sizes = iter(lambda: micro_batch_size, None)
        self._batches = Prefetch(sizes, self._build, threads, prefetch)

    def describe(self) -> str:
        """The line for the start of a run."""
        return (
            f"data: {len(self._urls)} shards read from front to back, as they cannot be read by range: "
            "the order depends on the number of processes, and a resume does not continue it exactly"
        )

    def __iter__(self) -> Iterator[TileBatch]:
        return self

    def __next__(self) -> TileBatch:
        return next(self._batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._batches.close()

    def _build(self, size: int, map_: Map) -> TileBatch:
        with self._lock:  # batches are built two at a time, and a generator fails only once
            if self._failure:
                raise self._failure
            try:
                samples = list(islice(self._samples, size))
            except Exception as error:
                self._failure = error
                raise
        items = map_(self._load, samples)
        self._bad = 0 if any(item.weight for item in items) else self._bad + size
        if self._bad >= _MAX_BAD:
            raise DataError(
                f"{self._bad} samples in a row cannot be used, the last: {items[-1].bad[0].reason}"
            )
        return assemble(items, self._tile_shape, self._pin)

    def _load(self, sample: _Sample) -> Item:
        position = sample.number * self._world_size + self._rank
        try:
            label = sample.label(self._num_classes)
            tiles, rows, columns = self._transform(open_image(sample.images[0], self._max_pixels), position)
        except DecodeError as error:
            bad = BadSample(-1, sample.key, shown(sample.shard), str(error))
            black: NDArray[np.uint8] = np.zeros((1, *self._tile_shape), np.uint8)
            return Item(black, 1, 1, NO_LABEL, position, -1, 0.0, (bad,))
        return Item(tiles, rows, columns, label, position, -1)

    def _shuffled(self, buffer: int) -> Iterator[_Sample]:
        draw = random.Random(int(hash64(self._seed, self._first_pass, self._rank)))
        held: list[_Sample] = []
        for number, sample in enumerate(self._in_passes()):
            sample.number = number
            held.append(sample)
            if len(held) >= buffer:
                i = draw.randrange(len(held))
                held[i], held[-1] = held[-1], held[i]
                yield held.pop()

    def _in_passes(self) -> Iterator[_Sample]:
        shards = len(self._urls)
        for number in count(self._first_pass):
            order = permute(np.arange(shards), shards, hash64(self._seed, number))
            usable = 0
            for shard in order[self._rank :: self._world_size]:
                for sample in _again(self._urls[shard]):
                    usable += not sample.problem and len(sample.images) == 1
                    yield sample
            if not usable:
                raise DataError(f"{shown(self._urls[0])} and the shards beside it hold no usable sample.")


def _again(url: str) -> Iterator[_Sample]:
    """The samples of a shard; where the connection breaks, from the beginning without those handed out."""
    done = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for sample in islice(_read(url), done, None):
                done += 1
                yield sample
            return
        except (OSError, HTTPException) as error:
            if attempt == _ATTEMPTS:
                raise DataError(f"{shown(url)} broke off {attempt} times, the last time: {error}") from error


def _read(url: str) -> Iterator[_Sample]:
    with patiently(url, lambda: urllib.request.urlopen(url, timeout=_TIMEOUT)) as answer:
        if answer.length is None:
            raise DataError(f"{shown(url)}: the server does not tell its size, so a cut could not be seen.")
        yield from _samples(WindowedFile(_forward(answer.read), answer.length, _WINDOW), url)


def _forward(read: Callable[[int], bytes]) -> Callable[[int, int], bytes]:
    def read_range(_: int, length: int) -> bytes:  # a WindowedFile asks for one range after the other
        data = read(length)
        if len(data) != length:
            raise OSError(f"{len(data)} bytes came instead of {length}")
        return data

    return read_range


def _samples(file: WindowedFile, url: str) -> Iterator[_Sample]:
    """Members with one key that stand together; a key that comes again is a problem."""
    seen: set[str] = set()
    sample: _Sample | None = None
    for member in scan(file, shown(url), file.size):
        key, extension = split_name(member.name)
        problem = None if member.folder else unusable(member, extension)
        if not problem and extension not in IMAGE_EXTENSIONS and extension not in LABEL_EXTENSIONS:
            continue
        if sample is None or key != sample.key:
            if sample:
                yield sample
            sample = _Sample(key, url, problem="this key again, further on" if key in seen else "")
            seen.add(key)
        if problem:
            sample.problem = problem
        elif extension in IMAGE_EXTENSIONS:
            file.seek(member.offset)
            sample.images.append(file.read(member.size))
        elif extension in sample.labels:
            sample.problem = f"several {extension} members under one key"
        else:
            sample.labels[extension] = parse_label(file, member, extension)
    if sample:
        yield sample
