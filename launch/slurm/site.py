"""The settings of a cluster: a file of configs/cluster."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from data_tools.errors import UsageError
from pretrain.config.keys import check_key, known_keys
from pretrain.config.loading import OWN_CONFIGS

from .quoting import one_line, option

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass
class Site:
    """What a file of configs/cluster says; configs/cluster/default.yaml explains the keys."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus_per_task: int | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    interface: str | None = None
    save_seconds: int = 120
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


def find_site(name: str, recipe: Path) -> Path:
    """The file of cluster `name`: a path, or NAME.yaml in the first of these folders that has it.

    cluster/ and configs/cluster/ beside the recipe; cluster/ in a folder configs/ that the recipe lies in;
    configs/cluster/ in the working folder; that of the project itself. Raises UsageError if there is none.
    """
    beside = recipe.resolve().parent
    places = [beside / "cluster", beside / "configs/cluster"]
    places += [folder / "cluster" for folder in beside.parents if folder.name == "configs"]
    places += [Path.cwd() / "configs/cluster", OWN_CONFIGS / "cluster"]
    is_path = os.sep in name or name.endswith((".yaml", ".yml"))
    found = [Path(name)] if is_path else [folder / f"{name}.yaml" for folder in places]
    for file in found:
        if file.is_file():
            return file
    if is_path:
        raise UsageError(f"--cluster {name}: there is no such file")
    known = sorted({file.stem for folder in places for file in folder.glob("*.yaml")})
    where = ", ".join(str(folder) for folder in dict.fromkeys(places))
    raise UsageError(f"--cluster {name}: no {name}.yaml in {where}; there are: {', '.join(known)}")


def read_site(file: Path) -> Site:
    """The settings in `file`.

    Texts are taken as they are written: 1:30:00 is a time, not the number 5400 that YAML makes of it, and
    ${HOME} is left to bash. Raises UsageError that names the key, also for variables that may be secrets.
    """
    site, keys = Site(), known_keys(Site)
    kinds = {item.name: str(item.type) for item in fields(Site)}
    for key, value in _entries(file):
        check_key(key, keys, str(file))
        where, is_list = f"{file}: {key}", kinds[key].startswith("list")
        if value is None and "None" not in kinds[key]:
            continue
        if isinstance(value, list) != is_list:
            raise UsageError(
                f"{where}: it is {'a list, such as [a, b]' if is_list else 'one value, not a list'}"
            )
        for text in value if isinstance(value, list) else [value or ""]:
            one_line(where, text.replace("\t", " ") if key == "setup" else text)
        if kinds[key].startswith("int") and isinstance(value, str):
            if not re.fullmatch("[0-9]{1,6}", value):
                raise UsageError(f"{where}: {value}: it must be a whole number")
            setattr(site, key, int(value))
        else:
            setattr(site, key, value)
    site.sbatch, site.srun = (
        [option(f"{file}: {key}", text) for text in getattr(site, key)] for key in ("sbatch", "srun")
    )
    for item in site.environment:
        name, equals, _ = item.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise UsageError(f"{file}: environment: {item!r}: variables are written NAME=value")
        if SECRET.search(name):
            raise UsageError(
                f"{file}: environment: {name} would stand in the batch script: export it in the shell "
                f"that submits, and sbatch hands it on"
            )
    return site


def _entries(file: Path) -> list[tuple[str, str | list[str] | None]]:
    """Keys and values of a YAML mapping, as they are written."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{file}: the settings of a cluster are a mapping of keys to values")
    keys = [str(key.value) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"{file}: {key} stands there twice")
    return [(key, _plain(value, f"{file}: {key}")) for key, (_, value) in zip(keys, node.value, strict=True)]


def _plain(node: yaml.Node, where: str) -> str | list[str] | None:
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{where}: it is a text, a number or a list of texts")
    return None if node.tag == "tag:yaml.org,2002:null" else node.value
