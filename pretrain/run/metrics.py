"""The speed and progress of a run, in numbers and in text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int], None]

LINE_WIDTH = 80  # of a usual terminal

# Dense bf16 FLOP/s by the manufacturer's data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of `device`; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


@dataclass
class Meter:
    """What this process did since the last `reset`.

    flops: of training. waited: seconds spent waiting for data. since: time.perf_counter() at the reset.
    """

    images: int = 0
    tiles: int = 0
    flops: float = 0.0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def count(self, images: int, tiles: int, flops: float, waited: float) -> None:
        """Add a micro-batch. flops: of its training step; waited: seconds until its data was there."""
        self.images += images
        self.tiles += tiles
        self.flops += flops
        self.waited += waited

    def reset(self) -> None:
        """Set the counts to 0 and the time to now."""
        self.__init__()  # type: ignore[misc]  # the class has no subclasses

    @property
    def seconds(self) -> float:
        """Seconds since the last `reset`."""
        return time.perf_counter() - self.since


def speed_row(sums: list[float], seconds: float, processes: int, peak: float | None) -> dict[str, Any]:
    """Speed figures for a row of metrics.jsonl.

    sums: images, tiles, flops and waited of `Meter`, summed over all processes. seconds: in which this was
    done. peak: FLOP/s of one process, for mfu, the share of the peak that was used.
    """
    images, tiles, flops, waited = sums
    return {
        "images_per_s": images / seconds,
        "tiles_per_image": tiles / max(1, images),
        "data_wait": min(1.0, waited / processes / seconds),
        "mfu": flops / seconds / (peak * processes) if peak else None,
    }


def console_line(row: dict[str, Any], steps: int, seconds_left: float) -> str:
    """A row of metrics.jsonl as one line of at most 80 characters; what matters least is left out first."""
    minutes, seconds = divmod(int(seconds_left), 60)
    parts = {
        "step": f"{row['step']}/{steps}",
        "loss": "not finite" if row["loss"] is None else f"{row['loss']:.4f}",
        "grad": "not finite" if row["grad_norm"] is None else f"{row['grad_norm']:.2f}",
        "lr": f"{row['lr']:.1e}".replace("e-0", "e-"),
        "img/s": f"{row['images_per_s']:.0f}",
        "wait": f"{row['data_wait']:.0%}",
        "mfu": f"{row['mfu']:.0%}" if row["mfu"] is not None else "",
        "left out": str(row["nonfinite"] or ""),  # steps
        "bad": str(row["bad_samples"] or ""),
        "eta": f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}",
    }
    line = "  ".join(f"{name} {value}" for name, value in parts.items() if value)
    for name in ("lr", "mfu", "wait", "grad", "eta"):
        if len(line) > LINE_WIDTH:
            line = line.replace(f"  {name} {parts[name]}", "")
    return line


@contextmanager
def progress_bar(step: int, steps: int, rank: int) -> Iterator[Advance]:
    """Yields a function to call with the number of steps done.

    Only rank 0 shows a bar, and only at a terminal; in logs there are plain lines.
    """
    if rank or not sys.stdout.isatty():
        yield lambda done: None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich prints what others print meanwhile above the bar.
    progress = Progress(*columns, console=Console(), transient=True)
    task = progress.add_task("training", total=steps, completed=step)
    with suppress(OSError):  # the terminal may go at any time
        progress.start()
    yield lambda done: progress.update(task, completed=done)
    with suppress(OSError):
        progress.stop()
