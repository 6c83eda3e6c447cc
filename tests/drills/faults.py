"""A disk that fails once: one run for each access to each file of a run, its shards and its checkpoints.

    python tests/drills/faults.py [--only PART OF A NAME] [--processes 2] [--nth 2] [--errors EIO]
                                  [key=value ...]

The accesses are found by a first run and a first resume, each of which then is done again with one failure:
EIO (the disk or its network), ESTALE (a file server that came back) and, where something is written, ENOSPC.
A run must end as if nothing had happened: the same losses, rows, samples and checkpoint. Only where a
checkpoint, or a file that the next start needs, meets a full disk, it may end with one `error:` line that
names the file, and then the same command must go on to the same end. Prints a line for each failure, and
ends with an error if one had another outcome.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drills.kills import pack
from jobs import TIMEOUT, environment, losses, metrics, rows, status, trace, write_recipe
from warm import run_warm

from pretrain.checkpoints.checkpoint import Checkpoint, complete

FAULTY = str(Path(__file__).resolve().parent / "faulty.py")
STEPS, HALF = 6, 3
SETTINGS = (
    *(
        "optim.schedule=constant",
        f"checkpoint.every={HALF}",
        "checkpoint.keep_best=true",
        "train.eval_every=2",
    ),
    *("checkpoint.keep=1", "data.max_pixels=960", "data.max_bad_fraction=1", "fault=nan:step=2"),
    *("checkpoint.background=false",),
)
CODES = (errno.EIO, errno.ESTALE, errno.ENOSPC)
WRITES = ("create", "write", "sync", "rename", "mkdir")
PRIMARY = ("checkpoints", "config.yaml", "classes.json", ".lock", "logs", "TEMPORARY")  # parts of a path

RUN = ("new", "resumed")  # the run folders, as faulty.py knows them


class Disk:
    """Runs of one recipe under `folder`, each with its own failure."""

    def __init__(
        self, folder: Path, processes: int = 0, nth: int = 1, settings: tuple[str, ...] = ()
    ) -> None:
        """nth: which of several accesses of one kind to a file fails. settings: of all runs."""
        self.folder, self.processes, self.nth, self.settings = folder, processes, nth, (*SETTINGS, *settings)
        self.recipe = write_recipe(folder / "recipe", pack(folder))
        self._numbers = itertools.count()

    def run(self, run: Path, steps: int, **spec: Any) -> CompletedProcess[str]:
        """Run to step `steps`; spec: of faulty.py."""
        file = self.folder / f"{run.name}.json"
        file.write_text(json.dumps({"below": str(self.folder), "nth": self.nth, **spec}), encoding="utf-8")
        settings = (f"run.dir={run.parent}", f"run.name={run.name}", f"train.steps={steps}", *self.settings)
        call = [FAULTY, str(file), "-m", "pretrain", str(self.recipe), *settings]
        return run_warm(call, environment(), TIMEOUT, self.processes)

    def begin(self, resumed: bool) -> Path:
        """A new run, or a copy of one that has ended at step HALF."""
        run = self.folder / f"{'resumed' if resumed else 'new'}-{next(self._numbers)}"
        if resumed:
            shutil.copytree(self.folder / "half-0", run)
        return run

    def accesses(self, resumed: bool) -> list[tuple[str, str]]:
        """Run or resume without a failure; returns the accesses and the names of their files."""
        run, record = self.begin(resumed), self.folder / "record"
        record.unlink(missing_ok=True)
        done = self.run(run, STEPS, record=str(record))
        assert done.returncode == 0, done.stdout + done.stderr
        lines = record.read_text(encoding="utf-8").splitlines()
        return sorted({tuple(line.split(" ", 1)) for line in lines})  # type: ignore[misc]

    def check(self, run: Path, wanted: Path, done: CompletedProcess[str], name: str, full: bool) -> str:
        """Compare a run that met a failure of the file `name` with an undisturbed one; returns its end."""
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        outcome = "went on"
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, said
            assert full and (any(part in name for part in PRIMARY) or name in RUN), said
            outcome = errors[0]
            done = self.run(run, STEPS)
            assert done.returncode == 0, done.stdout + done.stderr
            outcome += "; then went on"
        elif "warn" in said or "could not" in said:
            outcome += " with a warning"
        compare(run, wanted)
        return outcome


def compare(run: Path, wanted: Path) -> None:
    """Raises AssertionError unless a run is what an undisturbed one is."""
    assert losses(run) == losses(wanted)
    measured = [[row for row in metrics(folder) if "split" in row] for folder in (run, wanted)]
    assert measured[0] == measured[1]
    assert trace(run) == trace(wanted)
    for name in ("bad_samples.jsonl", "nonfinite.jsonl"):
        assert rows(run / name) == rows(wanted / name), name
    assert status(run)["state"] == "done" and (run / "report.html").stat().st_size
    newest, reference = (Checkpoint(complete(folder / "checkpoints")[0]) for folder in (run, wanted))
    newest.verify()
    assert newest.step == reference.step == STEPS
    left = [path.name for path in run.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert not left, left


def failures(accesses: list[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    for access, name in accesses:
        for code in (errno.EIO, errno.ESTALE, *([errno.ENOSPC] if access in WRITES else [])):
            yield access, name, code


def drill(disk: Disk, only: tuple[str, ...] = ("",), codes: tuple[int, ...] = CODES) -> None:
    """One run for each failure whose access and name hold one of the texts `only`."""
    prepare(disk)
    surprises = 0
    for resumed in (False, True):
        wanted = disk.folder / ("resumed-whole" if resumed else "whole-0")
        for access, name, code in failures(disk.accesses(resumed)):
            if code not in codes or not any(part in f"{access} {name}" for part in only):
                continue
            run = disk.begin(resumed)
            done = disk.run(run, STEPS, access=access, name=name, code=code, times=1)
            label = f"{'resume' if resumed else 'start'}: {access} {name}: {errno.errorcode[code]}"
            try:
                outcome = disk.check(run, wanted, done, name, code == errno.ENOSPC)
            except AssertionError:
                surprises += 1
                outcome = f"NOT AS IT SHOULD BE:\n{traceback.format_exc()}{done.stdout}{done.stderr}"
            print(f"{label}: {outcome}", flush=True)
            shutil.rmtree(run, ignore_errors=True)
    assert not surprises, f"{surprises} failures had another outcome than they should"


def prepare(disk: Disk) -> None:
    for run, steps in (("whole-0", STEPS), ("half-0", HALF)):
        done = disk.run(disk.folder / run, steps)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(disk.folder / "half-0", disk.folder / "resumed-whole")
    done = disk.run(disk.folder / "resumed-whole", STEPS)
    assert done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="failures whose access and name hold this text")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--nth", type=int, default=1, help="which access of one kind to a file fails")
    parser.add_argument("--errors", default="EIO,ESTALE,ENOSPC")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="such as tracking.wandb=offline")
    given = parser.parse_args()
    codes = tuple(getattr(errno, name) for name in given.errors.split(","))
    with tempfile.TemporaryDirectory() as folder:
        drill(Disk(Path(folder), given.processes, given.nth, tuple(given.settings)), (given.only,), codes)


if __name__ == "__main__":
    main()
