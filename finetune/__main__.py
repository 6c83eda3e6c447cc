"""python -m finetune CONFIG init=RUN|CHECKPOINT|FILE [key=value ...]; evaluate, predict, export, convert."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data_tools.errors import (
    DataError,
    Parser,
    UsageError,
    UserError,
    print_json,
    print_line,
    print_result,
    run_command,
)
from data_tools.shards.descriptors import raise_limit
from pretrain.run.stop import StopFlag

if TYPE_CHECKING:
    from torch import nn

    from pretrain.model.init import InitialValue, StartingValues

    from .predict import Prediction
    from .source import TrainedWeights

EVALUATION_TIMEOUT = 1800  # s that a process waits for the others in an exchange


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit; a UserError is printed as one line and becomes its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"evaluate": _evaluate, "predict": _predict, "embed": _embed, "export": _export}
    commands |= {"convert": _convert}
    stop = StopFlag()
    if not given or given[0] not in commands:
        stop.install()  # before the imports below, which take seconds

    from pretrain.job import fail, own_rank
    from pretrain.run.rendezvous import adopt_slurm

    def command() -> int:
        raise_limit()
        adopt_slurm()
        rank = own_rank()
        try:
            if given and given[0] in commands:
                return commands[given[0]](given[1:])
            _finetune(given, stop)
        except UserError as error:
            fail(error, rank, first_only=True)

    sys.exit(run_command(command))


def _finetune(arguments: list[str], stop: StopFlag) -> NoReturn:
    from pretrain.config.reference import help_text

    from .config import FinetuneConfig, load_begun, load_finetune

    parser = Parser(
        prog="python -m finetune",
        description="Fine-tune pretrained weights. The same command again resumes.",
        epilog="Other commands: python -m finetune evaluate | predict | embed | export | convert, each with "
        "--help.\n\n" + help_text(FinetuneConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a recipe, such as configs/finetune/in1k_384.yaml")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="init=RUN, and keys of the recipe"
    )
    from pretrain.config.command_line import parse_arguments
    from pretrain.job import run_job
    from pretrain.model.build import Model
    from pretrain.run.files import write_json
    from pretrain.run.folder import log

    from .adapt import adapt

    given = parse_arguments(parser, arguments, FinetuneConfig)
    if begun := load_begun(given.config, given.settings):
        run_job(begun, stop)
    config, source = load_finetune(given.config, given.settings)

    def prepare() -> StartingValues:
        def starting_values(model: nn.Module) -> InitialValue:
            assert isinstance(model, Model)
            adaptation = adapt(source, model, config.init_resize, config.init_missing)
            for text in (adaptation.summary, *(f"{source.name}: {note}" for note in source.notes)):
                log.info("%s", text)
            write_json(config.folder / "init.json", adaptation.origin)
            return adaptation.initial_value(model, config.run.seed)

        return starting_values

    run_job(config, stop, prepare)


def _evaluate(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m finetune evaluate",
        description="Exact accuracy over SHARDS, as one JSON line.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, checkpoint folder or exported file")
    parser.add_argument("shards", metavar="SHARDS", nargs="+")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=4, help="decoding threads (default: 4)")
    _add_weights(parser)
    given = parser.parse_args(arguments)

    from pretrain.run import processes
    from pretrain.run.nonfinite import finite

    from .evaluate import evaluate_run
    from .source import open_source

    if given.batch_size < 1 or given.workers < 0:
        raise UsageError("--batch-size must be above 0 and --workers at least 0")
    source = open_source(given.run, given.weights)
    world = processes.start(EVALUATION_TIMEOUT)
    if world.rank == 0:
        _print_notes(source)
    found = evaluate_run(
        source,
        given.shards[0] if len(given.shards) == 1 else given.shards,
        world,
        given.batch_size,
        given.workers,
    )
    if world.rank == 0:
        print_json({key: finite(value) for key, value in found.row().items()})
    processes.leave(world, 0)


def _predict(arguments: list[str]) -> int:
    parser = Parser(prog="python -m finetune predict", description="Class names and probabilities of images.")
    parser.add_argument("run", metavar="RUN", help="a run folder, checkpoint folder or exported file")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--topk", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON line for each image")
    _add_weights(parser)
    given = parser.parse_args(arguments)

    from .predict import open_run

    if given.topk < 1:
        raise UsageError(f"--topk {given.topk}: it must be at least 1")
    for path in given.images:
        if os.path.isdir(path):
            raise UsageError(f"{path}: it is a folder; give the images in it, such as {path}/*.jpg")
    run = open_run(given.run, given.weights)
    _print_notes(run.source)
    code = 0
    for path in given.images:
        try:
            found = run.predict([path], given.topk)[0]
        except DataError as error:  # the other images are still predicted
            print_line(f"error: {error}", error=True)
            code = error.exit_code
        else:
            row = {"image": path} | _as_json(found)
            print_json(row) if given.json else print_result(f"{path}: {_as_text(found)}")
    return code


def _embed(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m finetune embed",
        description="The features of images as a file for numpy: features (N, D), names, labels of SHARDS.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, checkpoint folder or exported file")
    parser.add_argument(
        "images", metavar="IMAGE | SHARDS", nargs="+", help="image files, or one set of shards"
    )
    parser.add_argument("destination", metavar="OUT.npz", help="the file to write")
    parser.add_argument(
        "--layer", type=int, help="of which block's output, 1 to the last or -1; default: the head's input"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images of shards at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=4, help="decoding threads for shards (default: 4)")
    _add_weights(parser)
    given = parser.parse_args(arguments)

    import numpy as np

    from .evaluate import embed_shards
    from .predict import open_run

    target = Path(given.destination)
    if target.suffix != ".npz" or target.exists() or not target.absolute().parent.is_dir():
        raise UsageError(f"{target}: it must be a new file in a folder that exists, and end in .npz")
    if given.batch_size < 1 or given.workers < 0:
        raise UsageError("--batch-size must be above 0 and --workers at least 0")
    run = open_run(given.run, given.weights)
    _print_notes(run.source)
    if given.layer is not None and not 1 <= abs(given.layer) <= len(run.model.blocks):
        raise UsageError(f"--layer {given.layer}: {run.source.name} has blocks 1 to {len(run.model.blocks)}")
    arrays: dict[str, Any] = {}
    wrong: list[str] = []
    if len(given.images) == 1 and not os.path.isfile(given.images[0]):
        found = embed_shards(run, given.images[0], given.layer, given.batch_size, given.workers)
        arrays = {"features": found.features, "names": found.names, "labels": found.labels}
        wrong = [f"{bad.shard}/{bad.key}: {bad.reason}" for bad in found.bad]
    else:
        rows = {}
        for path in given.images:
            try:
                rows[path] = run.embed([path], given.layer)[0].numpy()
            except DataError as error:  # the others are still embedded
                wrong.append(str(error))
        if not rows:
            raise DataError(f"none of the images could be read; the first: {wrong[0]}")
        arrays = {"features": np.stack(list(rows.values())), "names": list(rows)}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, target)
    for text in wrong:
        print_line(f"error: {text}", error=True)
    count, width = arrays["features"].shape
    print_line(f"{count} x {width} features -> {target}")
    return DataError.exit_code if wrong else 0


def _print_notes(source: TrainedWeights) -> None:
    for note in source.notes:
        print_line(f"note: {source.name}: {note}", error=True)


def _as_json(found: Prediction) -> dict[str, Any]:
    return {"classes": dict(found.classes)} if found.classes else {"numbers": list(found.numbers)}


def _as_text(found: Prediction) -> str:
    if found.classes:
        return ", ".join(f"{name} {p:.1%}" for name, p in found.classes)
    return ", ".join(f"{number:.4g}" for number in found.numbers)


def _export(arguments: list[str]) -> int:
    parser = Parser(prog="python -m finetune export", description="The weights of a run for other programs.")
    parser.add_argument("run", metavar="RUN", help="a run folder, checkpoint folder or exported file")
    parser.add_argument("destination", metavar="DST", help="the file to write; for hf and timm a new folder")
    parser.add_argument(
        "--format",
        choices=["safetensors", "hf", "timm"],
        required=True,
        help="safetensors: one file for this program; hf: transformers; timm: timm's hub form",
    )
    _add_weights(parser)
    given = parser.parse_args(arguments)

    from .export import export_folder, export_safetensors

    if given.format == "safetensors":
        done = export_safetensors(given.run, given.destination, given.weights)
        print_line(f"{done.tensors} tensors of {done.source} -> {done.path}")
    else:
        done = export_folder(given.run, given.destination, given.format, given.weights)
        print_line(f"{done.tensors} tensors of {done.source} -> {done.path} for {given.format}")
    return 0


def _convert(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m finetune convert",
        description="Weights in pickles of torch.save as a safetensors file. Only tensors and plain values "
        "are read (weights_only=True), which runs no code of the pickle.",
    )
    parser.add_argument("sources", metavar="PICKLE", nargs="+", help="a file, or all parts of a checkpoint")
    parser.add_argument("destination", metavar="DST", help="the safetensors file to write")
    parser.add_argument("--key", default="", help="the entry with the weights, such as model_ema")
    given = parser.parse_args(arguments)

    from .formats.unpickle import convert

    done = convert(given.sources, given.destination, given.key)
    origin = f"'{done.key}' of {given.sources[0]}" if done.key else given.sources[0]
    print_line(f"{done.tensors} tensors of {origin} -> {done.path}")
    if done.left_out:
        names = ", ".join(done.left_out[:5]) + (", ..." if len(done.left_out) > 5 else "")
        print_line(f"left out {len(done.left_out)}, no tensors of floating-point numbers: {names}")
    return 0


def _add_weights(parser: argparse.ArgumentParser) -> None:
    text = "auto: averaged if the run kept averages (default); ema: averaged; last: as trained"
    parser.add_argument("--weights", choices=["auto", "ema", "last"], default="auto", help=text)


if __name__ == "__main__":
    main()
