"""report.html: one page about a run, which can be read without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.errors import printable

from ..config.schema import Config
from .files import read_rows, replace_file
from .folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, HEIGHT, MARGIN = 460, 180, 42  # pixels

# Key, title, number format.
CURVES = (
    ("loss", "loss", "{:.3g}"),
    ("lr", "learning rate", "{:.1e}"),
    ("grad_norm", "gradient norm", "{:.3g}"),
    ("images_per_s", "images/s", "{:.0f}"),
    ("tiles_per_image", "tiles per image", "{:.2f}"),
    ("data_wait", "share of time spent waiting for data", "{:.1%}"),
)

# The same for evaluations; each objective has some of them.
MEASURED = (
    ("top1", "top-1", "{:.2%}"),
    ("top5", "top-5", "{:.2%}"),
    ("mae", "mean absolute error", "{:.4g}"),
    ("colours", "share of colours guessed", "{:.2%}"),
    ("loss", "loss", "{:.4f}"),
)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1020px; margin: 2rem auto; color: #222; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1.2rem; }}
figure {{ margin: 0; }} figcaption {{ font-size: .85rem; color: #444; }}
svg text {{ font-size: 11px; fill: #555; }} img {{ image-rendering: pixelated; height: 96px; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .8rem .15rem 0; text-align: left; }}
.wrong {{ color: #b00020; }}
</style>
<h1>{title}</h1>
<table>{facts}</table>
<h2>Training</h2><div class="row">{curves}</div>
<h2>Evaluation</h2><table>{evaluations}</table>
<h2>Predictions on held-out images, and where they come from (attention rollout)</h2>
<div class="row" id="examples">{examples}</div>
</html>
"""
EXAMPLES = '<div class="row" id="examples">'


@dataclass(frozen=True)
class Example:
    """An evaluated image.

    tiles: uint8 (rows · columns, C, S, S). grid: (rows, columns) of tiles. labels: classes or numbers.
    predicted: the probability of each class, or the numbers that the model gives, (outputs,). attention: see
    `Rollout.patches`.
    """

    tiles: Tensor
    grid: tuple[int, int]
    labels: tuple[float, ...]
    predicted: Tensor
    attention: Tensor


def write_report(
    folder: RunFolder, config: Config, classes: Sequence[str] = (), examples: Sequence[Example] | None = None
) -> bool:
    """Write report.html from metrics.jsonl; returns whether that was possible.

    classes: a name for each. examples: images to show; None: those of the report that is there.
    """
    return folder.write(
        folder.report, lambda: replace_file(folder.report, _page(folder, config, classes, examples))
    )


def _page(
    folder: RunFolder, config: Config, classes: Sequence[str], examples: Sequence[Example] | None
) -> str:
    rows = read_rows(folder.metrics, "step")
    steps = [row for row in rows if "split" not in row]
    evaluations = [row for row in rows if "split" in row]
    curves = [_figure(steps, *curve) for curve in CURVES]
    curves += [_figure(evaluations, key, f"{title}, held-out", form) for key, title, form in MEASURED]
    if examples is None:
        shown = _examples_so_far(folder.report)
    else:
        shown = "".join(_example(item, config.objective.name, classes) for item in examples)
    return PAGE.format(
        title=html.escape(f"{config.run.name}: {config.model.name}"),
        facts=_facts(config, steps),
        curves="".join(curves),
        evaluations=_table(evaluations),
        examples=shown or "none",
    )


def _examples_so_far(report: Path) -> str:
    try:
        page = report.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return page.partition(EXAMPLES)[2].rpartition("</div>")[0]


def _facts(config: Config, steps: list[dict[str, Any]]) -> str:
    last = {"step": 0, "images": 0, "epoch": None} | (steps[-1] if steps else {})
    epochs = "" if last["epoch"] is None else f" ({last['epoch']:.1f} epochs)"
    facts = {
        "steps": f"{last['step']:,}",
        "images seen": f"{last['images']:,}{epochs}",
        "global batch": f"{config.train.batch_size:,}",
        "tiles": f"at most {config.data.max_tiles} of {config.data.tile_size} px",
        "head": config.model.head,
        "engine": f"{config.engine.kind} {config.engine.precision}",
    }
    return "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())


def _figure(rows: list[dict[str, Any]], key: str, title: str, form: str) -> str:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if len(points) < 2:
        return ""
    xs, ys = np.array(points, dtype=float).T
    low, high = float(ys.min()), float(ys.max())
    across = (xs - xs[0]) / max(xs[-1] - xs[0], 1e-12) * (WIDTH - MARGIN - 10) + MARGIN
    down = (high - ys) / max(high - low, 1e-12) * (HEIGHT - 40) + 10
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{title}">'
        f'<polyline points="{line}" fill="none" stroke="#1a5fb4" stroke-width="1.5"/>'
        f'<text x="0" y="14">{form.format(high)}</text>'
        f'<text x="0" y="{HEIGHT - 26}">{form.format(low)}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 8}">step {int(xs[0])}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">step {int(xs[-1])}</text>'
        f"</svg><figcaption>{title}: last {form.format(ys[-1])}</figcaption></figure>"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<tr><td>data.val is not set</td></tr>"
    shown = [column for column in MEASURED if any(column[0] in row for row in rows)]
    head = "".join(f"<th>{title}</th>" for _, title, _ in shown)
    lines = [
        [
            row["step"],
            *(form.format(row[key]) if key in row else "" for key, _, form in shown),
            row.get("n", ""),
        ]
        for row in rows
    ]
    return f"<tr><th>step</th>{head}<th>images</th></tr>" + "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines
    )


def _example(item: Example, objective: str, classes: Sequence[str]) -> str:
    caption = {"regression": _numbers, "masked_patches": _colours}.get(objective, _guess)(item, classes)
    import torch.nn.functional as F

    rows, columns = item.grid
    _, channels, side, _ = item.tiles.shape
    # (rows, columns, C, S, S) -> (rows, S, columns, S, C): the tiles side by side, as one image.
    canvas = item.tiles.unflatten(0, item.grid).permute(0, 3, 1, 4, 2)
    pixels = canvas.reshape(rows * side, columns * side, channels).numpy()
    light = F.interpolate(item.attention[None, None], pixels.shape[:2], mode="bilinear")[0, 0]
    lit = pixels * (light / light.max()).numpy()[..., None]
    return (
        f"<figure>{_image(pixels, '')} {_image(lit.astype(np.uint8), 'attention')}"
        f"<figcaption>{caption}<br>{rows}×{columns} tiles</figcaption></figure>"
    )


def _image(pixels: NDArray[np.uint8], text: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _guess(item: Example, classes: Sequence[str]) -> str:
    best = int(item.predicted.argmax())
    name, *truth = (classes[int(label)] for label in (best, *item.labels))
    correction = ""
    if item.labels and best not in item.labels:
        correction = f' <span class="wrong">(is {html.escape(printable(", ".join(truth)))})</span>'
    return f"{html.escape(printable(name))} {float(item.predicted[best]):.0%}{correction}"


def _numbers(item: Example, classes: Sequence[str]) -> str:
    both = (item.predicted.tolist(), item.labels)
    predicted, true = (", ".join(f"{value:.3g}" for value in values) for values in both)
    return f"{predicted} (is {true})"


def _colours(item: Example, classes: Sequence[str]) -> str:
    loss, share = item.predicted.tolist()
    return f"loss {loss:.2f}, {share:.0%} of the colours"
