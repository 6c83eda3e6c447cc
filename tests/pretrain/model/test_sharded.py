"""Sharded over four processes, a model is the one that it is on one."""

import os
import subprocess
import sys
from pathlib import Path

from jobs import ROOT, TIMEOUT, environment


def test_first_weights_and_resized_tables_are_the_same_on_four_processes():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("sharded.py"))],
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sharded as whole") == 4
