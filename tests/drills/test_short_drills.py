"""A short form of every drill; the long ones are run by hand, by the command in each file's head."""

from __future__ import annotations

from pathlib import Path

from kills import drill


def test_three_kills(tmp_path: Path) -> None:
    drill(tmp_path, kills=3, seed=1, steps=150)
