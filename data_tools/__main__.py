"""python -m data_tools pack | index | verify | preview | bench"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data_tools.errors import Parser, counted, print_line, print_result, run_command
from data_tools.packing.label_arguments import (
    add_csv_arguments,
    add_label_arguments,
    csv_options,
    label_rules,
)
from data_tools.packing.pack import pack
from data_tools.packing.recode import Recode
from data_tools.shards.descriptors import raise_limit
from data_tools.shards.indexing import index_shards
from data_tools.shards.names import Shards
from data_tools.shards.shard_set import ShardSet
from data_tools.verify import balance, verify

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_MAX_PIXELS = 67_108_864  # as data.max_pixels
_MAX_PIXELS_HELP = f"larger images count as unreadable ({_MAX_PIXELS})"
_SHARDS_HELP = "a folder of shards, its shardindex.json, or shards such as 'train-{0000..0127}.tar'"
_CPUS = os.cpu_count() or 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 usage, 3 data, 130 interrupted."""
    raise_limit()

    def command() -> int:
        options = _parser().parse_args(arguments)
        return options.run(options)

    return run_command(command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m data_tools", description="Images to shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("pack", help="make shards of images, or of other shards")
    command.add_argument(
        "src", metavar="SRC", help="class/.../image folders, a .zip or .tar of them, or a folder of shards"
    )
    command.add_argument("dst", metavar="DST", help="a new or empty folder, or that of an interrupted pack")
    add_csv_arguments(command)
    add_label_arguments(command)
    command.add_argument(
        "--shard-size", type=_size, default="1GB", metavar="BYTES", help="e.g. 100MB (default: 1GB)"
    )
    command.add_argument("--no-shuffle", action="store_true", help="keep the order of the paths")
    command.add_argument("--seed", type=int, default=0, help="for the shuffle and the split (default: 0)")
    command.add_argument(
        "--split", type=_split, metavar="NAME=SHARE", help="e.g. val=0.2: DST/train and DST/val"
    )
    command.add_argument("--max-side", type=_count, metavar="N", help="shrink larger images to N pixels")
    command.add_argument(
        "--quality", type=_quality, metavar="Q", help="write JPEG and WebP anew as JPEG of quality 1 to 95"
    )
    command.add_argument(
        "--baseline",
        action="store_true",
        help="write progressive JPEG anew (not without loss): faster to decode",
    )
    command.add_argument(
        "--icc",
        choices=("convert", "keep"),
        default="convert",
        help="images with another colour profile than sRGB: write them in sRGB, or keep them (convert)",
    )
    command.add_argument(
        "--convert", action="store_true", help="take GIF, BMP, TIFF, AVIF, JPEG 2000 and PPM too, as PNG"
    )
    command.add_argument("--follow-links", action="store_true", help="also links that lead out of SRC")
    command.add_argument(
        "--class-folders", action="store_true", help="folders that look like splits are classes all the same"
    )
    command.add_argument("--max-pixels", type=_count, default=_MAX_PIXELS, help=_MAX_PIXELS_HELP)
    command.add_argument("--workers", type=_count, default=_CPUS, metavar="N", help=f"threads ({_CPUS})")
    command.add_argument("--quiet", action="store_true", help="print errors only")
    command.set_defaults(run=_pack)

    command = commands.add_parser("index", help="write the index of shards that pack did not make")
    command.add_argument(
        "shards",
        metavar="SHARDS",
        nargs="+",
        help="a folder of *.tar, or shards or URLs of shards with {000..127} or *",
    )
    command.add_argument(
        "--out", metavar="DIR", help="the folder for the index of URLs; a classes.json there is used"
    )
    add_label_arguments(command)
    command.set_defaults(run=_index)

    command = commands.add_parser("verify", help="list what is wrong in shards; exit code 3 if anything is")
    command.add_argument("shards", metavar="SHARDS", nargs="+", help=_SHARDS_HELP)
    command.add_argument("--decode", action="store_true", help="decode every image")
    command.add_argument("--ranks", type=_count, metavar="N", help="say whether the shards suit N processes")
    command.add_argument(
        "--workers", type=_count, default=4, metavar="W", help="threads, here and in each of the N (4)"
    )
    command.add_argument("--max-pixels", type=_count, default=_MAX_PIXELS, help=_MAX_PIXELS_HELP)
    command.set_defaults(run=_verify)

    command = commands.add_parser("preview", help="draw some samples and their tiles")
    command.add_argument("shards", metavar="SHARDS", nargs="+", help=_SHARDS_HELP)
    command.add_argument("out", metavar="OUT.png")
    command.add_argument("--images", type=_count, default=24, metavar="N", help="(24)")
    command.add_argument("--tile-size", type=_count, default=224, metavar="S", help="as data.tile_size (224)")
    command.add_argument("--max-tiles", type=_count, default=1, metavar="T", help="as data.max_tiles (1)")
    command.add_argument("--max-pixels", type=_count, default=_MAX_PIXELS, help=_MAX_PIXELS_HELP)
    command.set_defaults(run=_preview)

    command = commands.add_parser("bench", help="images/s of each stage of the input, without a model")
    command.add_argument("shards", metavar="SHARDS", nargs="+", help=_SHARDS_HELP)
    command.add_argument("--images", type=_count, default=2000, metavar="N", help="(2000)")
    command.add_argument("--threads", type=_count, default=_CPUS, metavar="T", help=f"({_CPUS})")
    command.add_argument("--config", metavar="RECIPE", help="a YAML recipe; its data group is used")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_bench)
    return parser


def _pack(options: argparse.Namespace) -> int:
    with _progress(options.quiet) as on_images:
        parts = pack(
            options.src,
            options.dst,
            csv=csv_options(options),
            rules=label_rules(options),
            shard_size=options.shard_size,
            shuffle=not options.no_shuffle,
            seed=options.seed,
            split=options.split,
            recode=Recode(
                options.max_side,
                options.quality,
                options.baseline,
                icc=options.icc == "convert",
                convert=options.convert,
            ),
            follow_links=options.follow_links,
            class_folders=options.class_folders,
            max_pixels=options.max_pixels,
            workers=options.workers,
            on_images=on_images,
        )
    if not options.quiet:
        print_line(f"labels: {parts[0].labels}", error=True)
        for image in parts[0].no_class:
            print_line(f"left out {image}", error=True)
        for line in str(parts[0].account).split("\n"):
            print_line(line, error=True)
        for part in parts:
            print_line(str(part))
    return 0


def _index(options: argparse.Namespace) -> int:
    summary, place = index_shards(options.shards, options.out, label_rules(options))
    print_line(f"labels: {summary.labels}", error=True)
    for problem in summary.problems:
        print_line(f"left out {problem}", error=True)
    if summary.ignored:
        print_line(f"ignored {summary.ignored} members that are neither image nor label", error=True)
    print_line(
        f"indexed {counted(summary.samples, 'sample')}, {counted(summary.shards, 'shard')}, "
        f"{summary.bytes / 1e6:.1f} MB, {len(summary.problems)} left out -> {place}"
    )
    return 0


def _given(options: argparse.Namespace) -> Shards:
    """The shards of the command line; several, where a shell has expanded a pattern."""
    return options.shards[0] if len(options.shards) == 1 else options.shards


def _verify(options: argparse.Namespace) -> int:
    checked = verify(
        _given(options),
        decode_images=options.decode,
        max_pixels=options.max_pixels,
        threads=options.workers,
    )
    bad = 0
    for problem in checked:
        print_result(str(problem))
        bad += 1
    if checked.note:
        print_line(f"note: {checked.note}", error=True)
    balanced = True
    if options.ranks and not bad and checked.opened:
        balanced, sentence = balance(checked.opened, options.ranks, options.workers)
        print_result(sentence)
    found = [counted(checked.samples, "sample"), checked.labels, counted(checked.shards, "shard")]
    print_result(", ".join(filter(None, [*found, f"{bad} bad"])))
    return 0 if balanced and not bad else 3


def _preview(options: argparse.Namespace) -> int:
    from data_tools.preview import preview  # here, because it imports torch

    shards = ShardSet.open(_given(options))
    for note in shards.notes:
        print_line(f"note: {note}", error=True)
    images = preview(
        shards,
        options.out,
        images=options.images,
        tile_size=options.tile_size,
        max_tiles=options.max_tiles,
        max_pixels=options.max_pixels,
    )
    print_line(f"{counted(images, 'image')} -> {options.out}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from data_tools.bench import bench  # here, because it imports torch

    bench(
        _given(options),
        images=options.images,
        threads=options.threads,
        config=options.config,
        as_json=options.json,
    )
    return 0


@contextmanager
def _progress(quiet: bool) -> Iterator:
    """A progress bar if stderr is a terminal, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda more, total: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("packing", total=None)
        yield lambda more, total: bar.update(task, advance=more, total=total)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _quality(text: str) -> int:
    if _count(text) > 95:
        raise argparse.ArgumentTypeError("a quality is 1 to 95")
    return int(text)


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]B)?", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500000, 100MB or 1GB")
    return size


def _split(text: str) -> tuple[str, float]:
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_]*)=(0?\.[0-9]+)", text)
    if not match or match[1] == "train" or float(match[2]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=SHARE such as val=0.2")
    return match[1], float(match[2])


if __name__ == "__main__":
    sys.exit(main())
