"""report.html of a run from its files, at any time and on any machine that has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_tools.errors import Parser, UsageError, UserError, print_line
from pretrain.run.folder import RunFolder
from pretrain.run.report import write_report


def main(arguments: Sequence[str]) -> int:
    """Write the report and print its path. Raises UsageError if RUN is no run."""
    parser = Parser(
        prog="python -m launch report",
        description="Write report.html from the files of a run. Its images stay.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    folder = RunFolder(parser.parse_args(arguments).run)
    settings = folder.path / "config.yaml"
    try:
        config = OmegaConf.load(settings)
        written = write_report(folder, config)  # type: ignore[arg-type]  # fine-tuning has more keys than Config
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, AttributeError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise UsageError(f"{settings}: not the settings of a run: {reason}: give a run folder") from None
    if not written:
        raise UserError(f"{folder.report}: it cannot be written: make room, or change its permissions")
    print_line(str(folder.report))
    return 0
