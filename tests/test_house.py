"""Where everything lives: who may import whom, no circles, no file too long, no public name unexplained."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jobs import ROOT

PACKAGES = ("data_tools", "pretrain", "finetune", "launch")
GROUND = ("data_tools.errors", "data_tools.random_numbers", "data_tools.tile_batch")

# A room: what it may import beside itself and the ground. NAME.* stands for all rooms below NAME.
MAY_IMPORT = {
    "data_tools.images": (),
    "data_tools.shards": (),
    "data_tools.augment": ("data_tools.images",),
    "data_tools.packing": ("data_tools.images", "data_tools.shards"),
    "data_tools.batches": ("data_tools.images", "data_tools.shards", "data_tools.augment"),
    "data_tools": ("data_tools.*",),
    "pretrain.config": (),
    "pretrain.run": ("pretrain.config",),
    "pretrain.model": ("pretrain.config",),
    "pretrain.engine": ("pretrain.config", "pretrain.model", "pretrain.run"),
    "pretrain.checkpoints": ("pretrain.config", "pretrain.model", "pretrain.run", "pretrain.engine"),
    "pretrain": ("pretrain.*", "data_tools", "data_tools.*"),
    "finetune.formats": ("pretrain.config", "pretrain.model", "pretrain.checkpoints"),
    "finetune.processors": ("finetune.formats", "pretrain.checkpoints", "data_tools.images"),
    "finetune": ("finetune.*", "pretrain", "pretrain.*", "data_tools", "data_tools.*"),
    "launch.slurm": ("finetune", "finetune.*", "pretrain", "pretrain.*", "data_tools", "data_tools.*"),
    "launch": ("launch.*", "finetune", "finetune.*", "pretrain", "pretrain.*", "data_tools", "data_tools.*"),
}
LONGEST_FILE = 300
FILES_AT_A_ROOT = 8
SUB_PACKAGES = 6


@cache
def files() -> dict[str, Path]:
    """Every module of the packages by its name; a package by that of its folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    paths = [Path(name) for name in listed if name.endswith(".py") and (ROOT / name).exists()]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / files()[module]).read_text())


def is_package(module: str) -> bool:
    return files()[module].name == "__init__.py"


def room(module: str) -> str:
    """The folder of a module: one of the rooms of MAY_IMPORT."""
    return module if is_package(module) else module.rpartition(".")[0]


@cache
def imports(module: str, types: bool) -> frozenset[str]:
    """The project's modules that a module names in its imports, those inside functions too.

    types: also what only a type checker imports.
    """
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            skipped.update(inner for child in node.body for inner in ast.walk(child))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package(module) else module.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in files() else base for alias in node.names}
    return frozenset(found & files().keys())


@pytest.mark.parametrize("here", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(here: str) -> None:
    allowed = MAY_IMPORT[here]
    wrong = []
    for module in files():
        if room(module) != here:
            continue
        for other in imports(module, types=True):
            there = room(other)
            below = any(
                there == name or (name.endswith("*") and there.startswith(name[:-1])) for name in allowed
            )
            if there != here and other not in GROUND and not below:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_the_ground_imports_nothing() -> None:
    assert {module: imports(module, types=True) for module in GROUND} == dict.fromkeys(GROUND, frozenset())


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in files()} == set(MAY_IMPORT)


def test_no_circle_among_files() -> None:
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module, types=False)):
                walk(other, (*path, module))
            done.add(module)

    for module in files():
        walk(module, ())


def test_files_and_folders_stay_small() -> None:
    long = {
        name: n
        for name, path in files().items()
        if (n := len((ROOT / path).read_text().splitlines())) > LONGEST_FILE
    }
    assert not long
    for package in PACKAGES:
        here = [name for name in files() if room(name) == package]
        below = {room(name) for name in files() if room(name).startswith(f"{package}.")}
        assert len(here) <= FILES_AT_A_ROOT, here
        assert len(below) <= SUB_PACKAGES, below


def is_text_without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes a text file in whatever encoding the machine has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    known = any(keyword.arg == "encoding" for keyword in call.keywords)
    if name in ("read_text", "write_text"):
        return not known and len(call.args) < (1 if name == "read_text" else 2)
    if name != "open":
        return False
    builtin = isinstance(call.func, ast.Name)
    given = call.args[builtin : builtin + 1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r" if builtin else "b"
    return not known and bool(re.fullmatch(r"[rwax]\+?", str(mode)))


def test_every_text_file_has_a_fixed_encoding() -> None:
    assert {
        f"{path}:{node.lineno}"
        for module, path in files().items()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and is_text_without_encoding(node)
    } == set()


def public(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions, classes and their methods whose names do not begin with an underscore."""
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{module}.{node.name}.{inner.name}", inner


def overrides(module: str) -> set[str]:
    """Methods of classes with a base: what they do stands where the base says it."""
    return {
        f"{module}.{node.name}.{inner.name}"
        for node in tree(module).body
        if isinstance(node, ast.ClassDef) and node.bases
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    }


def test_every_public_function_says_what_it_does() -> None:
    silent = [
        name
        for module in files()
        for name, node in public(module)
        if not ast.get_docstring(node) and name not in overrides(module)
    ]
    assert not silent


@cache
def known_names() -> frozenset[str]:
    """Every name that the project's code defines, takes as an argument, sets, reads or writes as a text."""
    found = set(dir(builtins))
    for module in files():
        found |= set(module.split("."))
        docstrings = {id(node.body[0].value) for node in documented(module)}
        for node in ast.walk(tree(module)):
            found |= {
                name
                for field in ("name", "id", "attr", "arg", "asname")
                if isinstance(name := getattr(node, field, None), str)
            }
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found |= set(re.findall(r"[\w-]+", node.value)) if len(node.value) < 80 else set()
    return frozenset(found)


def documented(module: str) -> Iterator[Any]:
    """The module, classes and functions of a file that have a docstring."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            yield node


@cache
def members() -> dict[str, set[str]]:
    """Of every class: what it and its bases define and set."""
    found: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for module in files():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(defined(node))
                bases[node.name] = [re.sub(r"\[.*|.*\.", "", ast.unparse(base)) for base in node.bases]

    def all_of(name: str) -> set[str]:
        inherited = (all_of(base) for base in bases.get(name, []) if base != name)
        return found.get(name, set()).union(*inherited)

    return {name: all_of(name) for name in found}


def defined(node: ast.ClassDef) -> set[str]:
    """The names that a class binds, and those that its methods set on `self`."""
    bound = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef | ast.ClassDef)}
    for inner in node.body:
        targets = [*getattr(inner, "targets", []), getattr(inner, "target", None)]
        bound |= {target.id for target in targets if isinstance(target, ast.Name)}
    attributes = {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self"
    }
    return bound | attributes


def test_every_name_in_a_docstring_exists() -> None:
    gone = []
    for module in files():
        for node in documented(module):
            for quoted in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", ast.get_docstring(node) or ""):
                parts = quoted.split(".")
                owner = members().get(parts[-2]) if len(parts) > 1 else None
                if any(part not in known_names() for part in parts) or (owner and parts[-1] not in owner):
                    gone.append(f"{module}: {quoted}")
    assert not gone
