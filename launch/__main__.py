"""python -m launch slurm CONFIG | status RUN | report RUN | cancel RUN: jobs on clusters, and their state."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_tools.errors import UserError, escape_output, print_line

USAGE = """usage: python -m launch COMMAND ...

  slurm CONFIG --nodes N --gpus-per-node G [key=value ...]   check a job, write its batch script, queue it
  status RUN [--follow]                                      the state of a run, wherever it runs
  status FOLDER                                              a line for each run in a folder of runs
  report RUN                                                 write report.html from the files of a run
  cancel RUN                                                 end the run's job, which does not come back
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, that of a UserError, 130 for Ctrl-C or 2 for wrong usage."""
    escape_output()
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1] if rest else []
    try:
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
    except UserError as error:
        print_line(f"error: {error}", error=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    (sys.stdout if command in ("-h", "--help") else sys.stderr).write(USAGE)
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
