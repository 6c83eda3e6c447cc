"""Settings on a command line: key=value, or --key=value as other programs have it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from data_tools.errors import UsageError

from .keys import known_keys, meant

_SETTING = re.compile(r"--(?=(\w+\.[\w.]+|init\w*|fault)=)")


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str], schema: type
) -> argparse.Namespace:
    """What `parser` makes of the arguments; UsageError for an option that it does not have.

    schema: the dataclass whose keys the message knows.
    """
    given, unknown = parser.parse_known_intermixed_args([_SETTING.sub("", text) for text in arguments])
    for text in unknown:
        key = text.lstrip("-").partition("=")[0]
        raise UsageError(
            f"{text}: there is no such option; settings are written key=value, such as "
            f"optim.lr=1e-3{meant(key, known_keys(schema))}"
        )
    return given
