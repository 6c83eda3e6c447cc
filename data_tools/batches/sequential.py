"""Training batches from shards that can only be read from front to back.

For web servers that send whole files only, so that no sample can be read by its offset. Uses the
webdataset library's pipeline with our strict tar reader. There is no order by position here: which image
comes when depends on the number of processes, and a resumed job begins a new pass. Shards that can be read
by range should be indexed instead.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice, repeat
from typing import Any

import numpy as np
import webdataset

from data_tools.augment.mix import Mix
from data_tools.batches.prefetch import Map, Prefetch
from data_tools.batches.stream import BatchStream, Decoding, Item, Share, Transform, assemble
from data_tools.errors import DataError, UsageError, counted, shown
from data_tools.images.decode import DecodeError, open_image
from data_tools.random_numbers import hash64, permute
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.label_meaning import Meaning, known_classes
from data_tools.shards.remote import expand, open_whole
from data_tools.shards.samples import IMAGE_EXTENSIONS, LabelMembers, is_companion, split_name, unusable
from data_tools.shards.tar import scan
from data_tools.tile_batch import BadSample, TileBatch

_PIECE, _ATTEMPTS = 1 << 20, 4  # bytes, passes over one shard
_MAX_BAD = 100  # unusable samples for one batch, as many as TrainStream's substitutes


@dataclass
class _Sample:
    """The members of one key, collected while the shard is read. problem: why they cannot be used, or ""."""

    key: str
    shard: str
    images: list[bytes] = field(default_factory=list)
    labels: LabelMembers = field(default_factory=LabelMembers)
    problem: str = ""
    companion: str = ""  # what is wrong with an image of another name, if there is no other image

    def label(self, meaning: Meaning) -> int:
        """The only label; DecodeError if the sample cannot be used."""
        if self.problem or len(self.images) != 1:
            raise DecodeError(self.problem or self.companion or f"{len(self.images)} images under one key")
        try:
            found = self.labels.labels()
            classes = meaning.resolve(next(iter(found.values()))) if len(found) == 1 else ()
        except ValueError as error:
            raise DecodeError(str(error)) from error
        if len(classes) != 1:
            raise DecodeError("not one label")
        return int(classes[0])


class SequentialShards:
    """Shards of a web server, each read as a whole. UsageError for anything but http(s) URLs.

    folder: the pattern, for messages; urls: of all shards, {000..127} expanded; classes: their names, or
    None; num_classes: their number.
    """

    multilabel = numeric = False
    notes: tuple[str, ...] = ()
    file_sha256 = ""  # there is no index
    num_samples = epoch_size = None  # unknown until all shards are read

    def __init__(self, pattern: str, num_classes: int, classes: list[str] | None = None) -> None:
        if not pattern.lower().startswith(("http://", "https://")) or _is_listing(pattern):
            raise UsageError(
                f"data.train={shown(pattern)}: data.sequential=true reads shards from http(s) URLs written "
                "out, such as https://host/train-{000..127}.tar; index everything else and read it by range."
            )
        self.folder, self.urls = shown(pattern), expand([pattern])
        self.num_classes, self.classes = num_classes, classes
        self.meaning = known_classes(num_classes, classes)

    def constants(self) -> dict[str, Any]:
        """As Mixture.constants(); it says only that there is no order to keep."""
        return {"sequential": True}

    def describe(self, batch_size: int) -> str:
        """As Mixture.describe()."""
        return (
            f"data: {counted(len(self.urls), 'shard')} read from front to back, as they cannot be read by "
            "range: the order depends on the number of processes, and a resume does not continue it exactly"
        )


class SequentialStream(BatchStream):
    """The endless training batches of one rank.

    In each pass the shards are distributed anew over the ranks. Samples are drawn at random from a buffer
    of `buffer` samples. The order depends on (seed, start_step, number of ranks). An unusable sample is
    skipped and reported in TileBatch.bad; TileBatch.sample is -1. UsageError for fewer shards than
    ranks; DataError for a damaged shard, a server that does not answer, and more than 100 unusable
    samples for one batch.
    """

    def __init__(
        self,
        shards: SequentialShards,
        transform: Transform,
        share: Share,
        decoding: Decoding,
        *,
        seed: int,
        start_step: int = 0,
        buffer: int = 2000,
        mix: Mix | None = None,
    ) -> None:
        rank, world_size = share.rank, share.world_size
        if len(shards.urls) < world_size:
            raise UsageError(
                f"{shards.folder}: {len(shards.urls)} shards are too few for {world_size} processes that "
                "read them from front to back: each needs one.",
                shared=True,
            )
        if mix:
            mix.check(share.micro_batch_size)
        self._shards, self._transform, self._mix = shards, transform, mix
        self._decoding = decoding
        key = int(hash64(seed, start_step))
        pipeline = webdataset.DataPipeline(
            lambda: _shards_of_rank(shards.urls, key, rank, world_size),
            _read_shards,
            webdataset.shuffle(buffer, initial=buffer, rng=random.Random(int(hash64(key, rank)))),
        )
        self._samples = zip(count(rank, world_size), pipeline, strict=False)
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        sizes = repeat(share.micro_batch_size)
        self._batches = Prefetch(sizes, self._build, decoding.threads, decoding.prefetch)

    def _build(self, size: int, map_: Map) -> TileBatch:
        items: list[Item] = []
        bad: list[BadSample] = []
        while len(items) < size:
            for item in map_(self._load, self._take(size - len(items))):
                (bad if isinstance(item, BadSample) else items).append(item)
            if len(bad) > _MAX_BAD:
                raise DataError(
                    f"{self._shards.folder} has too many unusable samples: {len(bad)} for one batch, the "
                    f"last {bad[-1].key} in {bad[-1].shard}: {bad[-1].reason}"
                )
        batch = assemble(items, self._decoding, tuple(bad))
        return self._mix(batch, map_, self._decoding.pin) if self._mix else batch

    def _take(self, size: int) -> list[tuple[int, _Sample]]:
        with self._lock:  # two threads take samples, and after an exception a generator only ends
            if self._failure:
                raise self._failure
            try:
                return list(islice(self._samples, size))
            except Exception as error:
                self._failure = error
                raise

    def _load(self, numbered: tuple[int, _Sample]) -> Item | BadSample:
        position, sample = numbered
        try:
            label = sample.label(self._shards.meaning)
            picture = open_image(sample.images[0], self._decoding.max_pixels)
            tiles, rows, columns = self._transform(picture, position)
        except DecodeError as error:
            return BadSample(-1, sample.key, shown(sample.shard), str(error))
        return Item(tiles, rows, columns, label, position, -1)


def _is_listing(url: str) -> bool:
    """Whether the names of the shards would have to be asked for."""
    path = url.partition("?")[0]
    return "*" in path or path.endswith("/")


def _shards_of_rank(urls: list[str], key: int, rank: int, world_size: int) -> Iterator[str]:
    """The shards of one rank, endlessly; in each pass they are distributed anew."""
    for number in count():
        order = permute(np.arange(len(urls)), len(urls), hash64(key, number))
        for shard in order[rank::world_size]:
            yield urls[shard]


def _read_shards(urls: Iterable[str]) -> Iterator[_Sample]:
    for url in urls:
        samples = 0
        for sample in _read_with_retries(url):
            samples += 1
            yield sample
        if not samples:
            raise DataError(f"{shown(url)} holds no sample: leave it out of data.train.")


def _read_with_retries(url: str) -> Iterator[_Sample]:
    """The samples of a shard. If the connection breaks, it is read again without those already given."""
    done = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            for sample in islice(_read(url), done, None):
                done += 1
                yield sample
            return
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise DataError(f"{shown(url)} broke off {attempt} times, the last time: {error}") from error


def _read(url: str) -> Iterator[_Sample]:
    with open_whole(url) as answer:
        if answer.length is None:
            raise DataError(f"{shown(url)}: the server does not tell its size, so a cut could not be seen.")
        yield from _samples(ForwardFile(_forward(answer.read), answer.length, _PIECE), url)


def _forward(read: Callable[[int], bytes]) -> Callable[[int, int], bytes]:
    def read_range(_: int, length: int) -> bytes:  # a ForwardFile reads each range right after the one before
        data = read(length)
        if len(data) != length:
            raise OSError(f"{len(data)} bytes came instead of {length}")
        return data

    return read_range


def _samples(file: ForwardFile, url: str) -> Iterator[_Sample]:
    """The samples of a shard: neighbouring members with one key. A key that comes again is a problem."""
    seen: set[str] = set()
    sample: _Sample | None = None
    labels = LabelMembers.extensions(None)
    for member in scan(file, shown(url), file.size):
        key, extension = split_name(member.name)
        problem = None if member.folder else unusable(member, extension)
        if not problem and extension not in IMAGE_EXTENSIONS and extension not in labels:
            continue
        if sample is None or key != sample.key:
            if sample:
                yield sample
            sample = _Sample(key, url, problem="this key again, further on" if key in seen else "")
            seen.add(key)
        if problem and member.regular and is_companion(extension):
            sample.companion = problem
        elif problem:
            sample.problem = problem
        elif extension in IMAGE_EXTENSIONS:
            file.seek(member.offset)
            sample.images.append(file.read(member.size))
        else:
            sample.labels.read(file, member, extension)
    if sample:
        yield sample
