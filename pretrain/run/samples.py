"""What a run writes about its samples: the unreadable ones, and with data.trace every one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from data_tools.tile_batch import TileBatch, checksum

from .folder import RunFolder, log


class SampleLog:
    """Writes bad_samples.jsonl and trace/ of the run `folder`.

    name(sample): the shard and the key of a training sample; None: `trace` does nothing.
    """

    def __init__(self, folder: RunFolder, name: Callable[[int], tuple[str, str]] | None) -> None:
        self._folder, self._name = folder, name
        self._noted: set[tuple[str, str, str]] = set()

    def note_bad(self, step: int, batch: TileBatch, split: str) -> int:
        """Write the unreadable samples of `batch` to bad_samples.jsonl; returns how many are new there.

        step: the one that they were read for. split: train or val.
        """
        new = 0
        for bad in batch.bad:
            if (split, bad.shard, bad.key) not in self._noted:
                self._noted.add((split, bad.shard, bad.key))
                new += self._folder.add_bad_sample({"step": step, "split": split, **asdict(bad)})
                log.warning("unreadable sample %s in %s: %s", bad.key, bad.shard, bad.reason)
        return new

    def noting_bad(self, step: int, batches: Iterable[TileBatch], split: str) -> Iterator[TileBatch]:
        """The batches; `note_bad` is called for each."""
        for batch in batches:
            self.note_bad(step, batch, split)
            yield batch

    def trace(self, step: int, batch: TileBatch) -> None:
        """Write every sample of a micro-batch of step `step` to trace/, with a checksum of its pixels."""
        if self._name is None:
            return
        rows = []
        for position, sample, crc in zip(
            batch.position.tolist(), batch.sample.tolist(), checksum(batch), strict=True
        ):
            shard, key = self._name(sample)
            rows.append({"step": step, "position": position, "shard": shard, "key": key, "crc32": crc})
        self._folder.add_trace(rows)
