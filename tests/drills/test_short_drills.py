"""A short form of every drill; the long ones are run by hand, by the command in each file's head."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from drills import faults, kills, saves, settings, starts
from jobs import Data


def test_three_kills(tmp_path: Path) -> None:
    kills.drill(tmp_path, kills=3, seed=1)


def test_two_starts_and_stops(data: Data, tmp_path: Path) -> None:
    starts.drill(tmp_path, data, ["fsdp"], rounds=2)


def test_a_few_failures_of_the_disk(tmp_path: Path) -> None:
    few = ("write new/metrics.jsonl", "rename new/report", "read train/shard-000000.tar", "create new/.lock")
    faults.drill(faults.Disk(tmp_path), few, (errno.EIO,))


@pytest.mark.slow
def test_memory_over_thirty_saves(tmp_path: Path) -> None:
    saves.drill(tmp_path, saves=30, megabytes=20)


def test_a_hundred_mutations_of_the_recipes(data: Data, tmp_path: Path) -> None:
    settings.drill(tmp_path, data, mutations=100, trained=3, seed=0)
