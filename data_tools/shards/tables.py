"""From the samples of all shards to the tables of an index: what their labels mean, and the labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataError, UsageError
from data_tools.shards.forward_file import ForwardFile
from data_tools.shards.label_meaning import Kind, LabelError, Meaning, refuse
from data_tools.shards.label_survey import Survey
from data_tools.shards.labels import LABEL, NO_LABEL, LabelRules, Labels
from data_tools.shards.samples import CLS, Problem, Scan, split_name
from data_tools.shards.storage import Storage
from data_tools.shards.tar import member_name

HEADER_PIECE = 2048  # bytes read at a time where only the name of a member is wanted


@dataclass(frozen=True)
class Tables:
    """The tables of an index.

    rows: ROW (N,). labels: int64 as in shardindex.labels.npy, or None where each sample has one label.
    numbers: float32 (N, n), or None where labels are classes.
    """

    rows: NDArray[np.void]
    labels: NDArray[np.int64] | None = None
    max_labels: int = 1  # the most that a sample has
    numbers: NDArray[np.float32] | None = None


def settle(scans: list[Scan], rules: LabelRules, names_from: str, storage: Storage) -> Meaning:
    """Decide what the labels of a set mean, and write them into the scans as numbers.

    rules.classes come from `names_from`. DataError, naming shards and keys, for labels that are no class;
    with rules.allow_unlabelled they become problems of their scans. UsageError where the rules must say more.
    """
    place = _place(scans, rules)
    survey = Survey()
    for scan in scans:
        for row, (key, found) in list(scan.unsettled.items()):
            labels = next((found[name] for name in (CLS, LABEL, place) if name in found), None)
            if labels is not None:
                scan.unsettled[row] = key, {"": labels}
                survey.add(labels, f"{scan.name}:{key}")
            else:
                del scan.unsettled[row]
                scan.unlabelled[row] = key
        numbers, counts = np.unique(scan.rows["label"], return_counts=True)
        plain = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        plain.pop(NO_LABEL, None)
        survey.add_numbers(plain)
    meaning = survey.decide(rules, names_from)
    outside = [_resolve(scan, meaning, storage) for scan in scans]
    if any(outside) and not rules.allow_unlabelled:
        raise refuse((problem for part in outside for problem in part.values()), names_from)
    for scan, part in zip(scans, outside, strict=True):
        if part:
            scan.leave_out(part)
    meaning.place = place
    meaning.said = f"{_where(scans, place)}{meaning.said}"
    return meaning


def merge(scans: list[Scan]) -> Tables:
    """The tables of all shards. If any sample has a label, those without one are left out as problems.

    DataError for a shard in which none is left, and for samples with different counts of numbers.
    """
    if any((scan.rows["label"] != NO_LABEL).any() or scan.several or scan.numbers for scan in scans):
        for scan in scans:
            _leave_out_unlabelled(scan)
    if any(scan.numbers for scan in scans):
        return _merge_numbers(scans)
    rows = np.concatenate([scan.rows for scan in scans])
    if not any(scan.several for scan in scans):
        return Tables(rows)
    counts = np.ones(len(rows), np.int64)
    several: dict[int, tuple[int, ...]] = {}
    start = 0
    for scan in scans:
        several |= {start + row: labels for row, labels in scan.several.items()}
        start += len(scan.rows)
    for row, labels in several.items():
        counts[row] = len(labels)
    starts = np.concatenate([[0], counts.cumsum()])
    values = np.repeat(rows["label"], counts)
    for row, labels in several.items():
        values[starts[row] : starts[row + 1]] = labels
    return Tables(rows, np.concatenate([starts, values]), int(counts.max()))


def count_classes(tables: Tables, classes: list[str] | None) -> int:
    """The number of class names, or else the highest label + 1; for numbers, how many each sample has."""
    if tables.numbers is not None:
        return tables.numbers.shape[1]
    if classes:
        return len(classes)
    values = tables.rows["label"] if tables.labels is None else tables.labels[len(tables.rows) + 1 :]
    return int(values.max(initial=NO_LABEL)) + 1


def _place(scans: list[Scan], rules: LabelRules) -> str | None:
    """The key of the json members that holds the labels, where no sample has cls or "label"."""
    taken: Counter[str] = sum((scan.taken for scan in scans), Counter())
    if rules.key is not None:
        if not taken:
            seen = sorted(set().union(*(scan.seen for scan in scans)))
            others = f"; other members are {', '.join(seen)}" if seen else ""
            raise UsageError(f"--label-key {rules.key}: no sample has it as a member or in its json{others}.")
        return next(iter(taken))
    if taken[CLS] or taken[LABEL] or not taken:
        return None
    if len(taken) > 1:
        raise UsageError(
            f"the json members have {' and '.join(sorted(taken))}: say with --label-key which is the label."
        )
    return next(iter(taken))


def _where(scans: list[Scan], place: str | None) -> str:
    if place is not None:
        return f"{place} of the samples: "
    taken: Counter[str] = sum((scan.taken for scan in scans), Counter())
    parts = [("KEY.cls", taken[CLS]), ("label of KEY.json", taken[LABEL])]
    if any(count for _, count in parts):
        return " and ".join(f"{name} ({count})" for name, count in parts if count) + ": "
    seen = sorted(set().union(*(scan.seen for scan in scans)))
    others = f", but KEY.{', KEY.'.join(seen)}" if seen else ""
    return (
        f"neither KEY.cls nor a label in KEY.json{others} (--label-key NAME takes a member KEY.NAME or a key "
        "of KEY.json for the label): "
    )


def _resolve(scan: Scan, meaning: Meaning, storage: Storage) -> dict[int, Problem]:
    """Turn the labels of a scan into numbers of classes; the problems of those that name none."""
    outside: dict[int, Problem] = {}
    before = scan.rows["label"].copy()
    for number in np.unique(before).tolist():
        found = _or_why(meaning, (number,))
        if number == NO_LABEL or (found == (number,) and meaning.kind is not Kind.number):
            continue
        for row in np.flatnonzero(before == number).tolist():
            if isinstance(found, str):
                outside[row] = Problem(scan.name, _key(scan, row, storage), found, True)
            else:
                _note(scan, row, found)
    for row, (key, places) in scan.unsettled.items():
        (given,) = places.values()
        found = _or_why(meaning, given)
        if isinstance(found, str):
            outside[row] = Problem(scan.name, key, found, True)
        else:
            _note(scan, row, found)
    scan.unsettled = {}
    return outside


def _or_why(meaning: Meaning, labels: Labels) -> tuple[int, ...] | tuple[float, ...] | str:
    try:
        return meaning.resolve(labels)
    except LabelError as error:
        return str(error)


def _note(scan: Scan, row: int, found: tuple[int, ...] | tuple[float, ...]) -> None:
    if found and isinstance(found[0], float):
        scan.numbers[row] = tuple(map(float, found))
        scan.rows["label"][row] = NO_LABEL
        return
    classes = tuple(map(int, found))
    scan.rows["label"][row] = classes[0] if classes else NO_LABEL
    if len(classes) != 1:
        scan.several[row] = classes


def _key(scan: Scan, row: int, storage: Storage) -> str:
    header = int(scan.rows["header"][row])
    file = ForwardFile(
        lambda start, length: storage.read(scan.name, start, length), scan.size, HEADER_PIECE, header
    )
    return split_name(member_name(file, storage.shown(scan.name), scan.size, header))[0]


def _merge_numbers(scans: list[Scan]) -> Tables:
    """The tables of a set in which labels are numbers; each sample has equally many."""
    numbers: list[tuple[float, ...]] = []
    width = None
    for scan in scans:
        for row in range(len(scan.rows)):
            values = scan.numbers.get(row, ())
            width = len(values) if width is None else width
            if len(values) != width or not values:
                raise DataError(
                    f"{scan.name} has a sample with {len(values)} numbers as its label where others have "
                    f"{width}: give every sample the same number of them."
                )
            numbers.append(values)
    rows = np.concatenate([scan.rows for scan in scans])
    return Tables(rows, numbers=np.array(numbers, np.float32))


def _leave_out_unlabelled(scan: Scan) -> None:
    reason = "no label (KEY.cls, or KEY.json with a label)"
    reasons = {row: Problem(scan.name, key, reason) for row, key in scan.unlabelled.items()}
    if len(reasons) == len(scan.rows):
        raise DataError(f"{scan.name} holds no labelled sample while other shards do.")
    scan.leave_out(reasons)
