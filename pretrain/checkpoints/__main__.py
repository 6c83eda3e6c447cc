"""python -m pretrain.checkpoints ls | verify | prune | consolidate | import

Checkpoints from the command line, on any machine: it needs no process group and no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os.path import abspath
from pathlib import Path
from typing import NoReturn

from data_tools.errors import DataError, Parser, UsageError, print_line, print_result, run_command

from ..run.folder import RunFolder
from .checkpoint import Checkpoint, complete, is_checkpoint, open_checkpoint
from .pointers import read_best
from .retention import Retention, delete_checkpoint
from .weights_file import write_weights

WEIGHTS = {
    "auto": "averaged if the run kept averages",
    "ema": "averaged",
    "last": "as trained",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; arguments: those of this process if None. Exits with the code of what went wrong."""

    def command() -> int:
        given = _parser().parse_args(arguments)
        return given.action(given)

    sys.exit(run_command(command))


def _parser() -> Parser:
    parser = Parser(prog="python -m pretrain.checkpoints", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("ls", help="what a run has")
    command.add_argument("run", metavar="RUN", help="a run folder, or its checkpoints folder")
    command.set_defaults(action=lambda given: ls(given.run))

    command = commands.add_parser("verify", help="check size and sha256 of every file; 3 if one is damaged")
    command.add_argument("run", metavar="RUN|CHECKPOINT")
    command.set_defaults(action=lambda given: verify(given.run))

    command = commands.add_parser(
        "prune", help="delete old ones; what `best` names, and what is damaged, stays"
    )
    command.add_argument("run", metavar="RUN")
    command.add_argument("--keep", type=int, required=True, help="newest ones that stay, at least 1")
    command.add_argument("--keep-every", type=int, default=0, help="multiples of this step stay as well")
    command.set_defaults(action=lambda given: prune(given.run, given.keep, given.keep_every))

    command = commands.add_parser("consolidate", help="the weights as one safetensors file")
    command.add_argument("run", metavar="RUN|CHECKPOINT")
    command.add_argument("destination", metavar="DST", help="the file to write")
    command.add_argument("--weights", choices=WEIGHTS, default="auto", help=describe_weights())
    command.set_defaults(action=lambda given: consolidate(given.run, given.destination, given.weights))

    command = commands.add_parser(
        "import", help="weights of our model in a checkpoint that DeepSpeed or torch's DCP wrote"
    )
    command.add_argument("source", metavar="SRC", help="the folder of DeepSpeed's save_checkpoint, or of DCP")
    command.add_argument("destination", metavar="DST", help="the safetensors file to write")
    command.add_argument("config", metavar="CONFIG", help="a recipe with the model and its preprocessing")
    command.add_argument("settings", metavar="key=value", nargs="*", default=[])
    command.add_argument(
        "--trust-pickle", action="store_true", help="SRC may run code while it is read: say that you trust it"
    )
    command.set_defaults(
        action=lambda given: import_foreign(
            given.source, given.destination, given.config, given.settings, given.trust_pickle
        )
    )
    return parser


def describe_weights() -> str:
    """The choices of --weights in one line, for help texts."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in WEIGHTS.items())


def ls(run: str) -> int:
    """Print one line for each checkpoint, newest first. Returns the exit code, 0."""
    root = _root(run)
    best = read_best(root)
    for path in complete(root):
        try:
            found = Checkpoint(path)
            engine = f"{found.state['engine'].get('kind')} x {found.state['processes']}"
        except DataError as error:
            print_result(f"{path.name}  damaged: {error}")
            continue
        groups = sorted({key.partition("/")[0] for key in found.tensors})
        notes = [f"best: score {best['score']:.4f}"] if best.get("checkpoint") == path.name else []
        holds = f"holds {', '.join(groups)}"
        print_result("  ".join([path.name, f"{found.size / 2**20:.1f} MiB", engine, holds, *notes]))
    for path in sorted(root.glob("*.tmp")):
        print_result(f"{path.name}  incomplete: being written, or left by an interrupted save")
    for path in sorted(root.glob("*.damaged*")):
        print_result(f"{path.name}  set aside: it was damaged when the run went on from an older one")
    return 0


def verify(run: str) -> int:
    """Print one line for each checkpoint. Returns the exit code: 3 if one is damaged."""
    path = Path(run)
    folders = [path] if is_checkpoint(path) else complete(_root(run))
    whole = [_is_whole(folder) for folder in folders]
    return 0 if all(whole) else DataError.exit_code


def prune(run: str, keep: int, every: int) -> int:
    """Keep the newest `keep` whole checkpoints, those at multiples of step `every`, the best; delete others.

    Those that stay are verified first. Returns the exit code: 3 if one of them is damaged, 1 if one could not
    be deleted. Raises UsageError if `run` is not a run, or is in use.
    """
    if keep < 1 or every < 0:
        raise UsageError("--keep must be above 0 and --keep-every at least 0")
    root = _root(run)
    if root.name != "checkpoints":
        raise UsageError(f"{root}: not the checkpoints of a run: give the run folder")
    RunFolder(root.parent).lock(patience=0.0)
    whole: dict[Path, bool] = {}
    stale = Retention(keep, every).stale(root, lambda path: whole.setdefault(path, _is_whole(path)))
    deleted = [path for path in stale if delete_checkpoint(path)]
    for path in deleted:
        print_line(f"deleted {path.name}")
    if not all(whole.values()):
        return DataError.exit_code
    return 0 if deleted == stale else 1


def _is_whole(folder: Path) -> bool:
    """Verify a checkpoint and print one line that says whether it is whole."""
    try:
        found = Checkpoint(folder)
        found.verify()
    except DataError as error:
        print_line(f"error: {error}", error=True)
        return False
    print_line(f"{folder.name}  whole: {len(found.tensors)} tensors")
    return True


def consolidate(run: str, destination: str, which: str) -> int:
    """Write the weights of a checkpoint as one file, which `python -m finetune` accepts too.

    which: as in `Checkpoint.weights`. Returns the exit code, 0. Raises UserError.
    """
    found = open_checkpoint(Path(run))
    keys = found.weights(which)
    shapes = {name: found.tensors[key] for name, key in keys.items()}
    write_weights(Path(destination), shapes, lambda name: found.whole(keys[name]), found.state)
    print_line(f"{len(keys)} tensors of {found.path} -> {destination}")
    return 0


def import_foreign(source: str, destination: str, recipe: str, settings: Sequence[str], trusted: bool) -> int:
    """Write the weights of a checkpoint of DeepSpeed or DCP (see foreign.py) as one safetensors file.

    recipe, settings: the configuration of its model. trusted: whether its pickles may be read. Returns the
    exit code, 0. Raises UserError.
    """
    import torch

    from ..config.loading import load
    from ..config.schema import Config
    from ..model.build import build_model
    from .facts import model_facts
    from .foreign import format_of, read_foreign

    config: Config = load(recipe, settings)
    kind = format_of(Path(source))
    if not trusted:
        raise UsageError(
            f"{source}: {kind} checkpoints hold pickles, which can run any code when they are read: if you "
            f"trust whoever wrote it, add --trust-pickle"
        )
    if config.model.num_classes is None:
        raise UsageError("model.num_classes is null: give the number of classes of the checkpoint's head")
    with torch.device("meta"):
        model = build_model(config, config.model.num_classes)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tensors, prefix = read_foreign(Path(source), shapes)
    facts = {"step": 0, "classes": None, **model_facts(config, config.model.num_classes)}
    write_weights(Path(destination), shapes, tensors.__getitem__, facts)
    removed = f", without the prefix '{prefix}' before their names" if prefix else ""
    print_line(f"{len(tensors)} tensors of {source} ({kind}) -> {destination}{removed}")
    return 0


def _root(run: str) -> Path:
    """The folder of a run's checkpoints."""
    path = Path(abspath(run))  # a relative path such as `.` has no name and no parent
    for root in (path / "checkpoints", path):
        if complete(root) or (root.name == "checkpoints" and root.is_dir()):
            return root
    raise UsageError(f"{run}: not a run with a checkpoint; check the path")


if __name__ == "__main__":
    main()
