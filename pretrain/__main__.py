"""python -m pretrain CONFIG [key=value ...]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .run.stop import StopFlag


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a job; arguments: those of this process if None. Exits with the code of how the job ended."""
    stop = StopFlag()
    stop.install()  # first, as a signal may come during the imports below, which take seconds

    from data_tools.errors import Parser, UsageError, run_command
    from data_tools.shards.descriptors import raise_limit

    from .config.command_line import parse_arguments
    from .config.loading import load
    from .config.reference import help_text
    from .config.schema import Config
    from .job import fail, own_rank, run_job
    from .run.rendezvous import adopt_slurm

    parser = Parser(
        prog="python -m pretrain",
        description="Pretrain a Vision Transformer. The same command again resumes.",
        epilog="Several processes: torchrun --nproc-per-node N -m pretrain CONFIG [key=value ...]\n\n"
        + help_text(Config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a recipe, such as configs/quickstart.yaml")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", default=[], help="override a key of the recipe"
    )

    def command() -> int:
        raise_limit()
        adopt_slurm()
        rank = own_rank()
        try:
            given = parse_arguments(parser, sys.argv[1:] if arguments is None else arguments, Config)
            config: Config = load(given.config, given.settings)
        except UsageError as error:
            fail(error, rank, first_only=True)
        run_job(config, stop)

    sys.exit(run_command(command))


if __name__ == "__main__":
    main()
