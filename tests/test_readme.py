"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT
from pictures import write_pictures

README = (ROOT / "README.md").read_text()


def test_the_commands_for_your_own_images_run_as_written(tmp_path: Path) -> None:
    block = re.search(r"## Your own images.*?```bash\n(.*?)```", README, re.DOTALL)
    assert block
    write_pictures(tmp_path / "my_images", 60, seed=5)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block[1]],
        cwd=tmp_path,
        env=os.environ | {"PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mine.safetensors").is_file()
    assert '"top1"' in done.stdout and "red" in done.stdout
    assert "#SBATCH --nodes=1" in done.stdout and "runs/mine: done  step 100/100" in done.stdout


PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES += ["README.md", "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:tests|pretrain|finetune|data_tools|configs|launch|docs)/[\w/]+\.\w+)`", text)
    linked = re.findall(r"\]\(([\w/.]+)\)", text)
    for name in named:
        assert (ROOT / name).exists(), name
    for name in linked:
        assert ((ROOT / page).parent / name).exists(), name


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_functions_that_are_named_exist(page: str) -> None:
    """A `Class`, `CONSTANT` or `function()`: in a file that the same paragraph, list item or row names."""
    for part in re.split(r"\n(?=\n|\||- |\d+\. )", (ROOT / page).read_text()):
        files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", part)]
        code = "\n".join(file.read_text() for file in files)
        for name in re.findall(r"`((?:[A-Z]\w*\.)?_?[A-Z]\w*|(?:\w+\.)?\w+(?=\(\)))(?:\(\))?`", part):
            for word in name.split("."):
                assert re.search(rf"(?m)\b(def|class) {word}\b|^{word}\b.*=", code), (name, files)
