"""The packages have types, and mypy finds no error in them; pyproject.toml has its settings."""

from __future__ import annotations

import subprocess
import sys

from jobs import ROOT


def test_mypy_has_nothing_to_say() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
