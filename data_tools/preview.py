"""A picture for people that shows what the model sees of a few samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_tools.augment.transforms import EvalTransform
from data_tools.errors import UsageError, printable
from data_tools.images.decode import DecodeError, open_image
from data_tools.random_numbers import hash64, permute
from data_tools.shards.shard_set import ShardSet

_CELL, _GAP, _TEXT_LINES, _FONT = 240, 14, 3, 13  # pixels, pixels, lines, pixels
_PAPER, _INK, _GREY, _BORDER, _BAD = "white", "black", "#666666", "#ff2d95", "#c00000"
_CLASSES_SHOWN = 3


@dataclass(frozen=True)
class _Cell:
    image: Image.Image
    lines: tuple[str, ...]  # the first in black, others in grey
    bad: bool = False


def preview(
    shards: ShardSet, out: str | Path, *, images: int, tile_size: int, max_tiles: int, max_pixels: int
) -> int:
    """Write a PNG that shows up to `images` samples from all shards; returns how many it shows.

    For each sample: its tiles as in evaluation, joined, with their borders; its label and class name; its
    size and that of its canvas, in pixels; its shard and key. The same samples each time. UsageError
    if `out` does not end in .png.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out} does not end in .png: give the name of the picture to write.")
    count = min(images, len(shards))
    chosen = permute(np.arange(count), len(shards), hash64(0)).tolist()
    _sheet([_cell(shards, i, tile_size, max_tiles, max_pixels) for i in chosen]).save(out)
    return count


def _cell(shards: ShardSet, i: int, tile_size: int, max_tiles: int, max_pixels: int) -> _Cell:
    title = _title(shards, i)
    try:
        picture = open_image(shards.read(i), max_pixels)
        tiles, rows, columns = EvalTransform(tile_size, max_tiles)(picture, i)
    except DecodeError as error:
        return _Cell(
            Image.new("RGB", (_CELL, _CELL // 2), "#f4dede"), (title, "unreadable:", str(error)), True
        )
    canvas = tiles.reshape(rows, columns, 3, tile_size, tile_size).transpose(0, 3, 1, 4, 2)
    canvas = canvas.reshape(rows * tile_size, columns * tile_size, 3)
    scale = min(_CELL / (columns * tile_size), _CELL / (rows * tile_size))
    size = round(columns * tile_size * scale), round(rows * tile_size * scale)
    image = Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for column in range(1, columns):
        x = round(column * tile_size * scale)
        draw.line((x, 0, x, size[1]), _BORDER, 2)
    for row in range(1, rows):
        y = round(row * tile_size * scale)
        draw.line((0, y, size[0], y), _BORDER, 2)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_BORDER)
    grid = f"{rows} x {columns} tiles" if rows * columns > 1 else "1 tile"
    shown = f"{picture.width} x {picture.height} -> {columns * tile_size} x {rows * tile_size}, {grid}"
    return _Cell(image, (title, shown, f"{shards.shard_name(i).rpartition('/')[2]}:{shards.key(i)}"))


def _title(shards: ShardSet, i: int) -> str:
    labels = shards.labels_of(i)
    if shards.numeric:
        return ", ".join(f"{number:.4g}" for number in labels)
    names = []
    for label in labels:
        name = shards.classes[int(label)] if shards.classes else str(label)
        names.append(f"label {label}" if name == str(label) else f"{label}: {name}")
    more = [f"and {len(names) - _CLASSES_SHOWN} more"] if len(names) > _CLASSES_SHOWN else []
    return ", ".join(names[:_CLASSES_SHOWN] + more) or "no label"


def _sheet(cells: list[_Cell]) -> Image.Image:
    columns = max(1, min(len(cells), round((len(cells) * 1.5) ** 0.5)))  # about 3 wide to 2 high
    font = ImageFont.load_default(_FONT)
    line = _FONT + 5
    width, height = _CELL + _GAP, _CELL + _TEXT_LINES * line + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, cell in enumerate(cells):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        sheet.paste(cell.image, (left + (_CELL - cell.image.width) // 2, top + _CELL - cell.image.height))
        for row, text in enumerate(cell.lines):
            colour = _BAD if cell.bad else _INK if row == 0 else _GREY
            draw.text((left, top + _CELL + 3 + row * line), _fit(text, font), colour, font)
    return sheet


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, cut where the cell ends."""
    text = " ".join(printable(text).split())
    if font.getlength(text) <= _CELL:
        return text
    while font.getlength(text + "...") > _CELL:
        text = text[:-1]
    return text + "..."
