"""What is installed from a wheel works from any folder, without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jobs import ROOT, Data


@pytest.mark.slow
def test_an_installed_wheel_has_recipes_and_clusters_and_writes_a_script(data: Data, tmp_path: Path) -> None:
    """The wheel is unpacked into a folder of its own, which goes before the environment's packages."""
    source, installed, here = (tmp_path / name for name in ("source", "installed", "here"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name} == {
            *("configs", "data_tools", "finetune", "launch", "pretrain")
        }
        archive.extractall(installed)
    shutil.rmtree(source)
    here.mkdir()
    arguments = ("--nodes", "1", "--gpus-per-node", "2", "--print", f"data.train={data.train}", "data.val=")
    done = subprocess.run(
        [sys.executable, "-m", "launch", "slurm", "configs/quickstart.yaml", *arguments],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"pretrain {installed}/configs/quickstart.yaml" in done.stdout
    assert f"cluster {installed}/configs/cluster/default.yaml" in done.stderr
    assert not list(here.iterdir()), "--print writes nothing"
