"""python -m launch slurm CONFIG | status RUN | report RUN | cancel RUN: jobs on clusters, and their state."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_tools.errors import flushed, run_command

USAGE = """usage: python -m launch COMMAND ...

  slurm CONFIG --nodes N --gpus-per-node G [key=value ...]   check a job, write its batch script, queue it
  status RUN [--follow]                                      the state of a run, wherever it runs
  status FOLDER                                              a line for each run in a folder of runs
  report RUN                                                 write report.html from the files of a run
  cancel RUN                                                 end the run's job, which does not come back
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, that of a UserError, 130 for Ctrl-C or 2 for wrong usage."""
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    return run_command(lambda: _run(command, rest[:-1]))


def _run(command: str, rest: list[str]) -> int:
    if command == "slurm":
        from .slurm.submit import main as slurm

        return slurm(rest)
    if command == "cancel":
        from .slurm.queue import cancel

        return cancel(rest)
    if command == "report":
        from .report import main as report

        return report(rest)
    if command == "status":
        from .status import main as status

        return status(rest)
    asked = command in ("-h", "--help")
    with flushed(stream := sys.stdout if asked else sys.stderr, needed=asked):
        stream.write(USAGE)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
