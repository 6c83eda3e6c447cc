"""Run a module as `python -m MODULE ...` does, but any use of pickle or of torch's object collectives fails.

python tests/without_pickle.py MODULE ...
"""

from __future__ import annotations

import os
import pickle
import runpy
import sys
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

WORD = "pickles were used"


def refuse(*given: Any, **named: Any) -> NoReturn:
    sys.stderr.write(f"{WORD}\n")
    sys.stderr.flush()
    os._exit(99)  # no handler of errors can hide it


def take_away() -> None:
    """From this process on."""
    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler", "_Pickler", "_Unpickler"):
        setattr(pickle, name, refuse)
    for module in (dist, c10d):
        for name in dir(module):
            if "_object" in name and callable(getattr(module, name)):
                setattr(module, name, refuse)
    for name in ("_pickler", "_unpickler"):
        setattr(c10d, name, refuse)


if __name__ == "__main__":
    take_away()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
