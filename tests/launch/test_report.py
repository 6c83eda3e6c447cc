"""report.html while a run goes on, after it was killed, and by `python -m launch report`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT, Data, WarmJob, status, succeed, write_recipe

from launch.__main__ import main

STEPS = 8


@pytest.fixture(scope="module")
def recipe(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that is done."""
    recipe = write_recipe(tmp_path_factory.mktemp("report"), data)
    succeed("pretrain", *arguments(recipe, "done"))
    return recipe


def arguments(recipe: Path, name: str, *settings: str) -> tuple[object, ...]:
    return recipe, f"run.dir={recipe.parent}", f"run.name={name}", f"train.steps={STEPS}", *settings


def evaluations(page: Path) -> list[int]:
    return [int(step) for step in re.findall(r"<tr><td>(\d+)</td>", page.read_text(encoding="utf-8"))]


def test_the_report_exists_and_is_current_from_the_first_evaluation_on(recipe: Path) -> None:
    folder = recipe.parent / "killed"
    job = WarmJob(folder, "pretrain", *arguments(recipe, "killed", "train.eval_every=2", "fault=hang:step=5"))
    page = folder / "report.html"
    job.wait_until(lambda: page.exists() and evaluations(page) == [2, 4])
    job.kill()


def test_a_run_killed_before_its_report_gets_it_at_the_next_start(recipe: Path) -> None:
    folder = recipe.parent / "unreported"
    shutil.copytree(recipe.parent / "done", folder)
    (folder / "report.html").unlink()
    torn = {"state": "failed", "exit_code": 1, "reason": "x", "traceback": "Traceback"}
    (folder / "status.json").write_text(json.dumps(status(folder) | torn), encoding="utf-8")
    assert "is finished" in succeed("pretrain", *arguments(recipe, "unreported"))
    assert evaluations(folder / "report.html") == [STEPS]
    assert "data:image/png" in (folder / "report.html").read_text(encoding="utf-8")
    now = status(folder)
    assert now["state"] == "done" and not {"traceback", "reason"} & now.keys()


def test_the_command_makes_it_from_the_files_without_torch(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(recipe.parent / "done", folder)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 9, "split": "val", "n": 21, "top1": 1.0}\nno row\n{"step": 9}\n')
    code = (
        "import sys; from launch.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    call = [sys.executable, "-c", code, "report", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html"), done.stderr
    assert evaluations(folder / "report.html") == [STEPS, 9]
    assert "data:image/png" in (folder / "report.html").read_text(encoding="utf-8"), "its images stay"


def test_what_is_no_run_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (None, "[1]", "run: {name: x}", "{", "\x00"):
        if content is not None:
            (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
        assert main(["report", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not (tmp_path / "report.html").exists()
