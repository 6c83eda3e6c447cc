"""The settings of a cluster: a file of configs/cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import UsageError
from pretrain.config import loading

SITES = Path("configs/cluster")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


@dataclass
class Site:
    """What a file of configs/cluster says; configs/cluster/default.yaml explains the keys."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    interface: str | None = None
    save_seconds: int = 120
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)


def read_site(name: str) -> Site:
    """The settings of cluster `name`: configs/cluster/NAME.yaml, or a path that ends in .yaml.

    Raises UsageError if there is none, and for variables that are not NAME=value or may be secrets.
    """
    file = Path(name) if name.endswith(".yaml") else SITES / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in SITES.glob("*.yaml")))
        raise UsageError(f"--cluster {name}: {file} is not there; there are: {known or 'none'}")
    # `read` is typed for recipes, but it works with any dataclass.
    site = loading.read(file, Site)  # type: ignore[type-var]
    for item in site.environment:
        variable, equals, _ = item.partition("=")
        if not equals or not variable.isidentifier():
            raise UsageError(f"{file}: environment: {item!r}: variables are written NAME=value")
        if SECRET.search(variable):
            raise UsageError(
                f"{file}: environment: {variable} would stand in the batch script: export it in the shell "
                f"that submits, and sbatch hands it on"
            )
    return site
