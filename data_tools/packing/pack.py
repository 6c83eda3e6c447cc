"""Pack the images of a folder, of an archive or of other shards into WebDataset shards with an index.

DST/shard-000000.tar ...   KEY.<ext>, the image as it was, and KEY.json, its label and path in SRC;
                           keys are serial numbers, so that a strange file name can do no harm
DST/classes.json           class names in the order of the labels
DST/shardindex.*           the index: see data_tools/shards/index.py
DST/pack.json              what was packed, with which options; only the same pack may continue here

The same source and options give the same bytes. Every file gets its name only when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import DataError, UsageError, counted
from data_tools.packing.csv_table import CsvOptions
from data_tools.packing.labelling import Entry, Labelled, label_by_csv, label_by_folder, label_by_shards
from data_tools.packing.layout import (
    ANNOTATIONS,
    check_class_folders,
    check_one_split,
    has_annotations,
    label_by_annotations,
)
from data_tools.packing.listing import Listing, Reason
from data_tools.packing.prepare import Prepare
from data_tools.packing.recode import USUAL, Recode
from data_tools.packing.shard_writer import metadata, write_shards
from data_tools.packing.sources import ShardSource, Source, images_added, list_images, open_source
from data_tools.packing.summary import Account, account_for
from data_tools.random_numbers import hash64, permute
from data_tools.shards.index import (
    CLASSES_NAME,
    INDEX_NAME,
    LABELS_NAME,
    OFFSETS_NAME,
    Summary,
    build_index,
    write_json,
)
from data_tools.shards.labels import NO_RULES, LabelRules
from data_tools.shards.side_files import is_side_file

PLAN_NAME = "pack.json"
_NAMES = "|".join((CLASSES_NAME, INDEX_NAME, OFFSETS_NAME, LABELS_NAME, PLAN_NAME))
_OURS = re.compile(rf"(shard-\d{{6}}\.tar|{_NAMES})(\.tmp)?")
_EARLIER = {"icc": False, "convert": False}  # what pack did before these were options of recode
_SPLIT, _SHUFFLE = 0, 1  # keys of the two permutations


@dataclass(frozen=True)
class Packed:
    """One folder of shards that pack() wrote.

    bytes: of all shards. account: of the whole source. unreadable: images that recode should have written
    anew but could not decode; they are packed as they were. labels: what was taken for the label, and why.
    no_class: images that are left out because their label is no class.
    """

    folder: Path
    images: int
    classes: int
    shards: int
    bytes: int
    account: Account
    unreadable: tuple[str, ...] = ()
    labels: str = ""
    no_class: tuple[str, ...] = ()

    @property
    def ignored(self) -> tuple[str, ...]:
        """The files and samples of the source that were left out."""
        passed = [path for paths in self.account.passed.values() for path in paths]
        return (*passed, *self.account.unlabelled)

    def __str__(self) -> str:
        return (
            f"packed {counted(self.images, 'image')}, {counted(self.classes, 'class', 'classes')}, "
            f"{counted(self.shards, 'shard')}, {self.bytes / 1e6:.1f} MB -> {self.folder}"
        )


@dataclass(frozen=True)
class _Plan:
    """Everything that decides the bytes of one folder of shards."""

    images: int
    seed: int
    shuffle: bool
    shard_size: int
    recode: Recode
    max_pixels: int | None  # None where no image is written anew, so that it decides nothing
    sha256: str  # of the paths, sizes, labels and class names


def pack(
    src: str | Path,
    dst: str | Path,
    *,
    csv: CsvOptions | str | Path | None = None,
    rules: LabelRules = NO_RULES,
    shard_size: int = 10**9,
    shuffle: bool = True,
    seed: int = 0,
    split: tuple[str, float] | None = None,
    recode: Recode = USUAL,
    follow_links: bool = False,
    class_folders: bool = False,
    max_pixels: int = 67_108_864,
    workers: int = 1,
    on_images: Callable[[int, int], None] = lambda more, total: None,
) -> list[Packed]:
    """Pack the images of `src` into shards of at most about `shard_size` bytes in `dst`.

    csv: a file with the labels, see label_by_csv(). rules: what the labels are. shuffle: in an order drawn
    from `seed`, else in that of the paths. split: (name, share) writes that share of the images to dst/name
    and the rest to dst/train. recode: which images to write anew; one of more than max_pixels counts as
    unreadable. follow_links: also those that lead out of `src`. class_folders: the first folders are the
    classes, even if check_class_folders() would say that they are not.
    workers: threads; their number changes no byte. on_images(more, total) is called whenever `more` of
    `total` images have been written. Returns one Packed for each folder.
    UsageError for options that cannot work or a dst that holds something else; DataError for a
    source without images or one that changes while it is packed.
    """
    source, dst = open_source(src, follow_links, rules), Path(dst)
    listing = list_images(source, recode.convert)
    labelled, by_folder = _label(source, listing, csv, rules, class_folders)
    parts = {dst: labelled.entries}
    if split:
        name, share = split
        _check_folder(dst, {"train", name}.__contains__)
        rest, held_out = _divide(labelled.entries, share, seed)
        parts = {dst / "train": rest, dst / name: held_out}
    for folder in parts:
        _check_folder(folder, lambda name: bool(_OURS.fullmatch(name)))
    prepare, total = Prepare(source, recode, max_pixels), len(labelled.entries)
    written: list[Entry] = []
    parted: list[tuple[Path, Summary, tuple[str, ...]]] = []
    for folder, entries in parts.items():
        if shuffle:
            order = permute(np.arange(len(entries)), len(entries), hash64(seed, _SHUFFLE))
            entries = [entries[i] for i in order]
        content = _content(entries, labelled.classes)
        limit = max_pixels if recode else None
        plan = _Plan(len(entries), seed, shuffle, shard_size, recode, limit, content)
        before = len(prepare.unreadable)
        with _begun(folder, plan, labelled.classes):
            keys = write_shards(
                folder, entries, shard_size, prepare, workers, lambda more: on_images(more, total)
            )
            summary = _finish(folder, len(keys), prepare, labelled.numeric)
        written += [entries[key] for key in keys]
        parted.append((folder, summary, tuple(sorted(prepare.unreadable[before:]))))
    if left_out := {entry.path for entry in labelled.entries} - {entry.path for entry in written}:
        listing.passed[Reason.UNCONVERTED] = sorted(left_out, key=os.fsencode)
    notes = [*listing.notes, *prepare.notes()]
    if earlier := len({entry.path for entry in written}.difference(prepare.prepared)):
        notes.append(f"images that an earlier run had packed, and that were not looked at again: {earlier}")
    account = account_for(labelled, listing, written, prepare.unusable, notes, by_folder)
    if added := images_added(source, listing):
        account.warnings.append(
            f"{len(added)} images came while the others were packed and are in no shard, first '{added[0]}': "
            "pack again into a new folder"
        )
    said, no_class = labelled.said, tuple(labelled.no_class)
    return [
        Packed(
            *(folder, part.samples, len(labelled.classes), part.shards, part.bytes, account),
            *(unreadable, said, no_class),
        )
        for folder, part, unreadable in parted
    ]


def _label(
    source: Source | ShardSource,
    listing: Listing,
    csv: CsvOptions | str | Path | None,
    rules: LabelRules,
    class_folders: bool,
) -> tuple[Labelled, bool]:
    """The labels of all images, and whether they are those of the folders."""
    if isinstance(source, ShardSource):
        if csv:
            raise UsageError(f"{source.name} holds shards, which have labels of their own: leave out --csv.")
        if (rules.key or (rules.numbers and not source.shards.numeric)) and source.shards.index_sha256:
            raise UsageError(
                f"{source.name} has an index, which says what its labels are: give --label-key and --numbers "
                "to python -m data_tools index, and then pack the shards without them."
            )
        return label_by_shards(source, rules), False
    if rules.key:
        raise UsageError("--label-key is for shards: with --csv give --columns label=NAME.")
    if csv:
        options = csv if isinstance(csv, CsvOptions) else CsvOptions(Path(csv))
        labelled = label_by_csv(listing, options, rules)
        if not rules.one_set:
            check_one_split(listing, (entry.path for entry in labelled.entries))
        return labelled, False
    if rules.numbers:
        raise UsageError("--numbers is for labels of a csv or of shards: the names of folders are classes.")
    if has_annotations(listing) and not class_folders:
        return label_by_annotations(listing, source.read(ANNOTATIONS), rules), False
    listing.pass_over_companions()
    check_class_folders(listing, class_folders)
    return label_by_folder(listing, rules), True


def _divide(entries: list[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    if len(entries) < 2:
        raise DataError("A single image cannot be split in two: leave out --split.")
    place = permute(np.arange(len(entries)), len(entries), hash64(seed, _SPLIT))
    held_out = place < min(max(round(share * len(entries)), 1), len(entries) - 1)
    pairs = list(zip(entries, held_out, strict=True))
    return [e for e, out in pairs if not out], [e for e, out in pairs if out]


def _content(entries: list[Entry], classes: list[str]) -> str:
    content = hashlib.sha256(json.dumps(classes).encode())
    for entry in entries:
        content.update(metadata(entry) + b"%d\n" % entry.size)
    return content.hexdigest()


def _check_folder(folder: Path, allowed: Callable[[str], bool]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give a new folder for the shards.")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if other := [name for name in names if not allowed(name) and not is_side_file(name)]:
        raise UsageError(f"{folder} holds something else ('{min(other)}'): give a new or an empty folder.")


@contextmanager
def _begun(folder: Path, plan: _Plan, classes: list[str]) -> Iterator[None]:
    """Locks `folder`, with its plan, for this process. If a DataError comes before any shard, empties it."""
    _begin(folder, plan, classes)
    with open(folder / PLAN_NAME, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder} is being written by another pack: wait for it.") from None
        try:
            yield
        except DataError:
            if not any(folder.glob("shard-*.tar")):
                for path in folder.iterdir():
                    if _OURS.fullmatch(path.name):
                        path.unlink()
            raise


def _begin(folder: Path, plan: _Plan, classes: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN_NAME
    if path.exists():
        found, wanted = json.loads(path.read_bytes()), asdict(plan)
        if isinstance(found, dict) and isinstance(found.get("recode"), dict):
            found["recode"] = _EARLIER | found["recode"]
        if found != wanted:
            raise UsageError(
                f"{folder} holds shards of another source or other options ({PLAN_NAME}): "
                "give a new folder, or delete this one."
            )
    elif shards := sorted(path.name for path in folder.glob("*.tar") if not is_side_file(path.name)):
        raise UsageError(f"{folder} already holds {shards[0]}: give a new or an empty folder.")
    else:
        write_json(path, asdict(plan))
    write_json(folder / CLASSES_NAME, classes)


def _finish(folder: Path, images: int, prepare: Prepare, numeric: bool) -> Summary:
    for left in folder.glob("*.tmp"):
        left.unlink()
    if not images:
        raise DataError(
            f"{prepare.source.name} holds no image that could be converted, first "
            f"'{min(prepare.unconverted)}'."
        )
    summary = build_index(folder, with_times=False, rules=LabelRules(numbers=numeric))
    if summary.samples != images:
        raise DataError(
            f"{folder} has {summary.samples} readable samples for {images} images, first "
            f"{next(iter(summary.problems), 'none')}: this is a fault of pack."
        )
    return summary
