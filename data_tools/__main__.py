"""python -m data_tools pack | index | verify"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data_tools.errors import UsageError, UserError
from data_tools.index import build_index
from data_tools.pack import pack
from data_tools.shards import load_index
from data_tools.verify import verify

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_MAX_PIXELS = 67_108_864  # as data.max_pixels


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code (0 done, 2 usage, 3 data)."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_tools", description="Images to shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("pack", help="a folder or zip of images to shards")
    command.add_argument("src", metavar="SRC", help="class/.../image folders, or a .zip of them")
    command.add_argument("dst", metavar="DST", help="a new or empty folder, or one to go on with")
    command.add_argument("--csv", metavar="FILE", help="labels: columns file,label; SRC may be flat")
    command.add_argument(
        "--shard-size", type=_size, default="1GB", metavar="BYTES", help="e.g. 100MB (default: 1GB)"
    )
    command.add_argument("--no-shuffle", action="store_true", help="keep the order of the paths")
    command.add_argument("--seed", type=int, default=0, help="of shuffle and split (default: 0)")
    command.add_argument(
        "--split", type=_split, metavar="NAME=SHARE", help="e.g. val=0.2: DST/train and DST/val"
    )
    command.add_argument("--quiet", action="store_true", help="print errors only")
    command.set_defaults(run=_pack)

    command = commands.add_parser("index", help="the index of shards that others made")
    command.add_argument("shards", metavar="SHARDS", help="a folder of *.tar")
    command.set_defaults(run=_index)

    command = commands.add_parser("verify", help="what is wrong in shards; exit code 3 if anything")
    command.add_argument("shards", metavar="SHARDS", help="a folder of shards or its shardindex.json")
    command.add_argument("--decode", action="store_true", help="decode every image")
    command.add_argument("--max-pixels", type=int, default=_MAX_PIXELS, help=f"({_MAX_PIXELS})")
    command.set_defaults(run=_verify)
    return parser


def _pack(options: argparse.Namespace) -> int:
    with _progress(options.quiet) as on_images:
        parts = pack(
            options.src,
            options.dst,
            csv=options.csv,
            shard_size=options.shard_size,
            shuffle=not options.no_shuffle,
            seed=options.seed,
            split=options.split,
            on_images=on_images,
        )
    if not options.quiet:
        if ignored := parts[0].ignored:
            what = "not jpg, jpeg, png or webp, empty, or not in the csv"
            print(f"ignored {len(ignored)} files ({what}), first {ignored[0]!r}", file=sys.stderr)
        for part in parts:
            print(part)
    return 0


def _index(options: argparse.Namespace) -> int:
    summary = build_index(options.shards)
    for problem in summary.problems:
        print(f"left out {problem}", file=sys.stderr)
    print(
        f"indexed {summary.samples} samples, {summary.shards} shards, "
        f"{summary.bytes / 1e6:.1f} MB -> {options.shards}"
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    bad = 0
    for problem in verify(
        options.shards,
        decode_images=options.decode,
        max_pixels=options.max_pixels,
        threads=os.cpu_count() or 1,
    ):
        print(problem)
        bad += 1
    _, index, _ = load_index(options.shards)
    print(
        f"{index['samples']} samples, {index['num_classes']} classes, "
        f"{len(index['shardlist'])} shards, {bad} bad"
    )
    return 3 if bad else 0


@contextmanager
def _progress(quiet: bool) -> Iterator:
    """A bar on a terminal; nothing otherwise."""
    if quiet or not sys.stderr.isatty():
        yield lambda more, total: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("packing", total=None)
        yield lambda more, total: bar.update(task, advance=more, total=total)


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]B)?", text.upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500000, 100MB or 1GB")
    return size


def _split(text: str) -> tuple[str, float]:
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9_]*)=(0?\.[0-9]+)", text)
    if not match or match[1] == "train" or float(match[2]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE such as val=0.2")
    return match[1], float(match[2])


if __name__ == "__main__":
    sys.exit(main())
