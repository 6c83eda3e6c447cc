"""The order of images at full scale, in one process: cost, read amplification, mixing of classes.

    python tests/bench/order_scale.py [--samples 1000000000] [--batch 32768]

1024 ranks with 8 threads each, chunks of K = 64, windows of V chunks, L lanes.
Cost: CPU microseconds of a rank's own positions, their samples and chunks, computed as TrainStream does.
Reads: each node reads a chunk whole when it first needs it and forgets it when its lane goes on to the next
window; bytes read over bytes delivered, over whole windows, and over half of a window too (a stop).
Classes: 1,000 classes of equal size, shards sorted by class; chi squared over degrees of freedom of the
histogram of each global batch against equal shares: 1 is a full shuffle. The last line is what it should be
by the share of pairs of a lane's positions in one batch that come from one chunk.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_tools.batches.order import Order
from data_tools.batches.stream import ORDER_BLOCK

RANKS, THREADS, CHUNK, CLASSES = 1024, 8, 64, 1000


def cost(order: Order, batch: int, positions: int = 400_000) -> float:
    """CPU microseconds a position, of ranks spread over the job, at position 10^9 and later."""
    size, done = batch // RANKS, 0
    ahead = max(1, ORDER_BLOCK // size)
    first_step = 10**9 // batch
    start = time.process_time()
    while done < positions:
        rank = done // size * 37 % RANKS
        steps = range(first_step, first_step + ahead)
        mine = np.concatenate([order.share(step, batch, rank, RANKS) for step in steps])
        order.locate(mine)
        done += len(mine)
    return (time.process_time() - start) / done * 1e6


def amplification(order: Order, batch: int, nodes: int, windows: float) -> float:
    """Samples read over samples delivered, of one node in the middle of the job."""
    steps = int(windows * order.window_size / batch)
    start = order.window_size // batch  # a window begins
    read, delivered = 0, 0
    for first in range(start, start + steps, order.window_size // batch):
        last = min(first + order.window_size // batch, start + steps)
        shares = [order.share(step, batch, nodes // 2, nodes) for step in range(first, last)]
        positions = np.concatenate(shares)
        chunks = order.locate(positions)[1]
        lanes = positions % order.lanes
        read += CHUNK * len(np.unique(np.stack([lanes, chunks]), axis=1).T)
        delivered += len(positions)
    return read / delivered


def chi_squared(order: Order, batch: int, batches: int = 64) -> float:
    """Mean over batches of chi squared / degrees of freedom of the histogram of classes."""
    values = []
    for step in range(0, batches * 997, 997):
        classes = order.sample_at(order.batch(step, batch)) * CLASSES // order.num_samples
        counts = np.bincount(classes, minlength=CLASSES)
        expected = batch / CLASSES
        values.append(((counts - expected) ** 2 / expected).sum() / (CLASSES - 1))
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=32_768)
    options = parser.parse_args()
    batch = options.batch
    layouts = [(4, batch // 4), (8, batch // 4), (4, batch // 2), (4, batch)]
    print(f"N = {options.samples:,}, {RANKS} ranks x {THREADS} threads, batch {batch:,}, K = {CHUNK}")
    print(f"{'':40}" + "".join(f"{f'V={v} L={lanes}':>12}" for v, lanes in layouts) + "   target")
    orders = [Order(0, options.samples, lanes, CHUNK, window) for window, lanes in layouts]

    def row(name: str, values: list[float], target: float) -> None:
        print(f"{name:40}" + "".join(f"{value:12.3f}" for value in values) + f"   {target}")

    row("CPU us a position", [cost(order, batch) for order in orders], 1.5)
    for nodes in (16, 64, 256):
        reads = [amplification(order, batch, nodes, 2) for order in orders]
        row(f"reads / data, {nodes} nodes, 2 windows", reads, 1.05)
    reads = [amplification(order, batch, 64, 10.5) for order in orders]
    row("reads / data, 64 nodes, 10.5 windows", reads, 1.05)
    row("chi^2/df of classes in a batch", [chi_squared(order, batch) for order in orders], 1.6)
    row(
        "  1 + (B/L - 1)(K - 1)/(V K - 1)",
        [1 + (batch / o.lanes - 1) * (CHUNK - 1) / (o.window * CHUNK - 1) for o in orders],
        1.6,
    )


if __name__ == "__main__":
    main()
