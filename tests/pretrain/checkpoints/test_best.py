"""The file `best` names a checkpoint that exists, and the best one is never deleted, whatever fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved import VALUES, ranges

from pretrain.checkpoints.checkpoint import complete
from pretrain.checkpoints.pointers import announce_best, best_text, read_best
from pretrain.checkpoints.retention import Retention
from pretrain.checkpoints.saver import Saver
from pretrain.run.processes import ALONE

SCORES = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.8, 5: 0.1}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """failing(function of os, the name of its target, errno): from now on it raises that; "" is any."""

    def fail(function: str, part: str, number: int) -> None:
        real = getattr(os, function)

        def failing(source: Any, *rest: Any) -> Any:
            if part in ("", Path(rest[0] if rest else "").name):
                raise OSError(number, os.strerror(number), str(source))
            return real(source, *rest)

        monkeypatch.setattr(os, function, failing)

    monkeypatch.setattr("data_tools.errors._DISK_WAITS", (0.0, 0.0))
    return fail


def train(root: Path, steps: range) -> Saver:
    """Save the steps as the training loop does with keep_best, keep=1 and on_error=continue."""
    saver = Saver(root, ALONE, background=False, retention=Retention(1), on_error="continue")
    for step in steps:
        score = SCORES[step]
        saver.save(step, ranges(VALUES), {"step": step}, score if score > saver.best_score else None)
    return saver


def names(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in complete(root))


def test_the_best_and_the_newest_stay(tmp_path: Path) -> None:
    assert train(tmp_path, range(1, 6)).best_score == 0.8
    assert names(tmp_path) == [4, 5]
    assert read_best(tmp_path) == {"checkpoint": "step-00000004", "step": 4, "score": 0.8}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    "function, part", [("rename", "step-00000002"), ("replace", "best.next"), ("fsync", "")]
)
def test_a_checkpoint_that_was_not_published_is_not_the_best(
    tmp_path: Path,
    failing: Callable[[str, str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    part: str,
    number: int,
) -> None:
    train(tmp_path, range(1, 2))
    failing(function, part, number)
    assert train(tmp_path, range(2, 3)).best_score == 0.5
    monkeypatch.undo()
    assert read_best(tmp_path)["step"] == 1
    assert 1 in names(tmp_path)
    train(tmp_path, range(3, 4))
    assert read_best(tmp_path)["step"] == 3, "one that is better than the last published best is saved"


def test_a_pointer_that_cannot_be_moved_harms_no_checkpoint(
    tmp_path: Path, failing: Callable[[str, str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, range(1, 2))
    failing("replace", "latest", errno.EIO)
    failing("replace", "best", errno.EACCES)
    assert train(tmp_path, range(2, 4)).error is None
    assert names(tmp_path) == [1, 2, 3]
    monkeypatch.undo()
    assert read_best(tmp_path)["step"] == 1
    assert Saver(tmp_path, ALONE, background=False).best_score == 0.7
    assert read_best(tmp_path)["step"] == 2
    train(tmp_path, range(5, 6))
    assert names(tmp_path) == [2, 5]


@pytest.mark.parametrize("published, best", [(True, 2), (False, 1)])
def test_a_job_killed_while_it_publishes_leaves_the_right_best(
    tmp_path: Path, published: bool, best: int
) -> None:
    train(tmp_path, range(1, 2))
    announce_best(tmp_path, best_text("step-00000002", 2, 0.7))
    if published:
        Saver(tmp_path / "other", ALONE, background=False).save(2, ranges(VALUES), {"step": 2})
        os.rename(tmp_path / "other/step-00000002", tmp_path / "step-00000002")
    assert Saver(tmp_path, ALONE, background=False).best_score == SCORES[best]
    assert read_best(tmp_path)["step"] == best
    assert not (tmp_path / "best.next").exists()
