"""Save a checkpoint over and over; the memory of the process must not grow.

    python tests/drills/saves.py [--saves 100] [--megabytes 200]

Prints the resident memory after the fifth save and after the last, and ends with an error if it grew by 5 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.engine.ranges import LocalRange
from pretrain.run.processes import ALONE

TENSORS = 300


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def drill(folder: Path, saves: int, megabytes: int) -> float:
    """Growth of the resident memory from the fifth save to the last, as a fraction."""
    values = torch.rand(TENSORS, megabytes * 2**18 // TENSORS)
    saver = Saver(folder, ALONE, background=True, retention=Retention(2))
    after_five = 0
    for step in range(1, saves + 1):
        ranges = [LocalRange(f"model/{i}", value.shape, 0, value, 0, 1) for i, value in enumerate(values)]
        saver.save(step, ranges, {"step": step})
        saver.finish()
        if step == 5:
            after_five = resident()
    growth = resident() / after_five - 1
    print(f"{saves} saves of {megabytes} MiB: {after_five / 2**20:.1f} MiB after 5, grown by {growth:.2%}")
    assert growth < 0.05, "memory grows with every save"
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--megabytes", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill(Path(folder), given.saves, given.megabytes)


if __name__ == "__main__":
    main()
