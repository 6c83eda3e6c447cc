"""The settings of a cluster: a file of configs/cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from data_tools.errors import UsageError
from pretrain.config.keys import nearest
from pretrain.config.loading import OWN_CONFIGS

from .quoting import one_line, option

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


class Site(BaseModel):
    """What a file of configs/cluster says; configs/cluster/default.yaml explains the keys."""

    model_config = ConfigDict(extra="forbid")

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    mem: str | None = None
    cpus_per_task: NonNegativeInt | None = None
    modules: list[str] = []
    setup: list[str] = []
    environment: list[str] = []
    interface: str | None = None
    save_seconds: NonNegativeInt = 120
    sbatch: list[str] = []
    srun: list[str] = []


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
    known = sorted({file.stem for folder in places for file in folder.glob("*.yaml")})
    where = ", ".join(map(str, dict.fromkeys(file.parent for file in found)))
    raise UsageError(f"--cluster {name}: no {found[0].name} in {where}; names: {', '.join(known)}")


def read_site(file: Path) -> Site:
    """The settings in `file`.

    Texts are taken as they are written: 1:30:00 is a time, not the number 5400 that YAML makes of it, and
    ${HOME} is left to bash. Raises UsageError that names the key, also for variables that may be secrets.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node, raw = yaml.compose(text, yaml.BaseLoader), yaml.load(text, yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or (node and len(node.value) > len(raw)):
        raise UsageError(f"{file}: the settings of a cluster are a mapping, which has each key once")
    given = {key: value for key, value in raw.items() if value not in ("", "null", "~")}
    try:
        site = Site.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = str(wrong["loc"][0])
        known = "" if key in Site.model_fields else nearest(key, Site.model_fields)
        raise UsageError(f"{file}: {key}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}{known}") from None
    for key, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            one_line(f"{file}: {key}", item.replace("\t", " ") if key == "setup" else item)
    site.sbatch = [option(f"{file}: sbatch", item) for item in site.sbatch]
    site.srun = [option(f"{file}: srun", item) for item in site.srun]
    for item in site.environment:
        name, equals, _ = item.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise UsageError(f"{file}: environment: '{item}': variables are written NAME=value")
        if SECRET.search(name):
            raise UsageError(
                f"{file}: environment: {name} would stand in the batch script: export it in the shell "
                f"that submits, and sbatch hands it on"
            )
    return site
