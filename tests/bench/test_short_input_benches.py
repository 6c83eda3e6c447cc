"""The benchmarks of the input run, and say what they measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from jobs import ROOT, environment


def bench(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_loader_keeps_its_memory() -> None:
    text = bench("tests/bench/loader.py", "--memory", "--quick")
    resident = [float(number) for number in re.findall(r"resident +([\d.]+) MiB", text)]
    assert len(resident) > 5 and resident[-1] < 1.02 * resident[0]
    assert re.search(r"first batch: [\d.]+ ms at position 0, [\d.]+ ms at position 10\^9", text)


def test_the_order_reads_each_chunk_once_and_mixes_classes() -> None:
    text = bench("tests/bench/order_scale.py", "--samples", 10**8, "--batch", 4096)
    reads = [float(x) for line in re.findall(r"reads / data, .*", text) for x in line.split()[7:-1]]
    assert len(reads) == 16 and max(reads) <= 1.05
    assert "chi^2/df" in text


def test_the_loader_is_compared_with_its_peer(shared) -> None:
    photos: Path = shared("data/photos/photos.zip")
    text = bench("tests/bench/loader.py", photos, "--quick")
    assert re.search(r"crop: peer, 2 workers +[\d.]+ +2\.5", text)
