"""The batch script runs what it is meant to run, whatever is written in options, settings and site files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import Data, write_recipe

from launch.__main__ import main
from launch.slurm.quoting import quote
from launch.slurm.site import Site, find_site, read_site

TOUCH = "touch {canary}"
EVIL = [
    f"x\n{TOUCH}\n#SBATCH --wrap=touch\n",
    f"-x={{{{{{{{command}}}}}}}}'; {TOUCH}; '\"; {TOUCH}; $({TOUCH}) `{TOUCH}` & {TOUCH} | {TOUCH} # \"",
    f"x\r\u2028{TOUCH}\\",
]
OPTIONS = ("nodes", "time", "partition", "account", "qos", "mem", "after", "container", "cluster")
TEXTS = ("account", "partition", "qos", "time", "mem", "interface", "save_seconds", "cpus_per_task")
LISTS = ("modules", "environment", "sbatch", "srun")
DIRECTIVES = "job-name nodes ntasks-per-node cpus-per-task time partition account qos mem x"
DIRECTIVES += " output open-mode requeue signal"


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every program that the script may call; each writes its arguments down."""
    folder = tmp_path / "a 'b$(touch canary)"
    folder.mkdir()
    for name in ("srun", "module", "apptainer", "python", "scontrol", "sleep"):
        answer = "echo localhost 20000" if name == "python" else ""
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> "$CALLS"\n{answer}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def run_script(script: str, stubs: Path) -> list[str]:
    """Run it with the stubs, and return every word that they were called with, one behind the other."""
    calls = stubs / "calls"
    calls.unlink(missing_ok=True)
    environment = {"PATH": f"{stubs}:/usr/bin:/bin", "CALLS": str(calls), "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "2", "LANG": "C.UTF-8"}
    subprocess.run(["bash", "-s"], input=script, text=True, env=environment, capture_output=True)
    return calls.read_text().split("\0")


def cases(tmp_path: Path) -> list[tuple[str, list[str]]]:
    """(where, arguments) for each text of EVIL in each option, setting and field of the site file."""
    canary = tmp_path / "canary"
    found = []
    for number, text in enumerate(EVIL):
        evil = text.format(canary=canary)
        found += [(f"--{name}", [f"--{name}={evil}"]) for name in OPTIONS]
        project = re.sub(r"[/\\#?%:\n\r\u2028]", "", text.format(canary=canary.name))
        found += [("setting", [f"tracking.project={project}"]), ("run", [f"run.name={evil}"])]
        site = {name: evil for name in TEXTS} | {"setup": [evil.replace("touch", "true")]}
        site |= {name: [evil] for name in LISTS} | {"environment": [f"A={evil}"]}
        site |= {"sbatch ": [f"--x={quote(evil)}"], "srun ": [f"--x={quote(evil)}"]}
        for name, value in site.items():
            file = tmp_path / f"{number}{name}.yaml"
            file.write_text(json.dumps({name.strip(): value}))
            found.append((f"site {name}", ["--cluster", str(file)]))
    return found


def test_no_value_can_start_a_command_or_a_directive(
    data: Data,
    stubs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(tmp_path / "it's", data)
    here = tmp_path / "a folder'; touch canary; '\n#SBATCH --wrap=touch"
    here.mkdir()
    monkeypatch.chdir(here)
    usual = [
        "slurm",
        str(recipe),
        "--gpus-per-node=0",
        "--tasks-per-node=1",
        "--print",
        f"run.dir={tmp_path}",
    ]
    accepted = set()
    for where, arguments in cases(tmp_path):
        nodes = [] if where == "--nodes" else ["--nodes=1"]
        code = main([*usual, *nodes, *arguments])
        script, error = capsys.readouterr()
        if code:
            assert code == 2 and error.count("\n") == 1 and not script, (where, error)
            continue
        accepted.add(where)
        named = re.findall(r"^#SBATCH '?--([\w-]+)", script, re.MULTILINE)
        assert set(named) <= set(DIRECTIVES.split()) and named[-4:] == DIRECTIVES.split()[-4:], script
        assert script.index("#SBATCH --signal") < script.index("\nrun="), "directives end before commands"
        calls = run_script(script, stubs)
        assert calls.count("srun") == 1 and "touch" not in calls, (where, calls)
    assert not list(tmp_path.rglob("canary")), "a value was run as a command"
    assert {"setting", "--partition", "--container", "site modules", "site environment"} <= accepted
    assert not {"--nodes", "--after", "--mem", "--time", "run"} & accepted


def test_what_comes_out_of_the_script_is_what_went_in(
    data: Data, stubs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, site = write_recipe(tmp_path, data), tmp_path / "site.yaml"
    show = """printf '%s\\0' ${HOME:-none} >> "$CALLS\""""
    site.write_text(
        "time: 12:30:45\nmem: 08G\naccount: null\nmodules: [cuda/12.8, 'a b']\n"
        f"setup:\n- {show}\n"
        "environment: ['A=it''s $HOME']\nsrun: ['--comment=\"a b\"']\nsbatch: [\"--comment='c d'\"]\n"
    )
    arguments = ["--gpus-per-node=0", "--tasks-per-node=2", "--nodes=1", "--print", "--cluster", site]
    value = "é 'x' \"y\" $HOME"
    assert main(["slurm", str(recipe), *map(str, arguments), f"tracking.project={value}"]) == 0
    script, notes = capsys.readouterr()
    calls = run_script(script, stubs)
    assert f"tracking.project={value}" in calls and "--comment=a b" in calls and "none" in calls
    assert calls[calls.index("module") : calls.index("module") + 4] == ["module", "load", "cuda/12.8", "a b"]
    assert "export A='it'\"'\"'s $HOME'" in script.splitlines()
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for line in ("--time=12:30:45", "--mem=08G", "'--comment=c d'", "--cpus-per-task=2"):
        assert f"#SBATCH {line}" in directives
    assert str(site) in notes and "2 for each process: data.workers=1 and its own thread" in notes


def test_a_word_with_any_bytes_is_the_same_word_in_bash_on_one_line() -> None:
    for raw in (bytes(range(1, 256)), b"\xff'\n\\", "Zürich\u2028日本".encode()):
        word = quote(os.fsdecode(raw))
        done = subprocess.run(["bash", "-c", f"printf %s {word}".encode()], capture_output=True)
        assert done.stdout == raw and len(word.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partitoin: a", "did you mean partition"),
        ("sbatch: --x", "valid list"),
        ("time: [1]", "valid string"),
        ("save_seconds: soon", "valid integer"),
        ("time: 1\ntime: 2", "each key once"),
        ("- a", "a mapping"),
        ("a: [", "cannot be read"),
        ("srun: [--mpi pmix]", "--name=value"),
        ("srun: [bash]", "--name=value"),
        ("environment: [1A=x]", "NAME=value"),
        ("setup: {a: b}", "valid list"),
    ],
)
def test_a_mistake_in_a_site_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    from data_tools.errors import UsageError

    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(says)) as raised:
        read_site(file)
    assert str(file) in str(raised.value)
    file.write_text("partition:\nsave_seconds: null\nmodules: null\n# nothing else\n")
    assert read_site(file) == Site()


def test_a_site_is_looked_for_near_the_recipe_then_here_then_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, here = tmp_path / "lab/configs/deep/recipe.yaml", tmp_path / "here"
    files = [recipe.parent / "cluster", recipe.parents[1] / "cluster", here / "configs/cluster"]
    for folder in files:
        folder.mkdir(parents=True)
        (folder / "default.yaml").touch()
    monkeypatch.chdir(here)
    for folder in files:
        assert find_site("default", recipe) == folder / "default.yaml"
        (folder / "default.yaml").unlink()
    own = find_site("default", recipe)
    assert own.is_file() and own.parts[-3:] == ("configs", "cluster", "default.yaml")
    assert find_site(str(own), recipe) == own
