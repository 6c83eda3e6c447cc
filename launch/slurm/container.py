"""The tasks of a job in a container: pyxis with enroot, or apptainer if the image is a FILE.sif."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from data_tools.shards.names import folders_of
from data_tools.shards.urls import is_url
from pretrain.config.checks import training_sources
from pretrain.config.schema import Config


def srun_options(image: str, config: Config) -> list[str]:
    """srun's options for pyxis; none for apptainer."""
    if _is_sif(image):
        return []
    mounts = ",".join(f"{folder}:{folder}" for folder in mounted(config))
    # Otherwise pyxis starts the task in the folder that the image names.
    return [
        f"--container-image={shlex.quote(image)}",
        f"--container-mounts={shlex.quote(mounts)}",
        f"--container-workdir={shlex.quote(os.getcwd())}",
    ]


def command_prefix(image: str, config: Config, gpus: bool) -> str:
    """What stands before the command of each task: apptainer's call, or nothing for pyxis.

    gpus: whether the job uses GPUs.
    """
    if not _is_sif(image):
        return ""
    binds = shlex.quote(",".join(map(str, mounted(config))))
    nvidia = " --nv" if gpus else ""
    here = shlex.quote(os.getcwd())
    return f"apptainer exec{nvidia} --bind {binds} --pwd {here} {shlex.quote(image)} "


def mounted(config: Config) -> list[Path]:
    """The folders that the container must see: code, run, data, weights. None lies within another."""
    sources = [shards for shards, _ in training_sources(config.data)]
    read = [*sources, config.data.val]
    folders = {folder.resolve() for shards in read if shards for folder in folders_of(shards)}
    if (init := getattr(config, "init", "")) and not is_url(init):
        path = Path(init).resolve()
        folders.add(path.parent if path.is_file() else path)
    folders |= {Path.cwd(), config.folder.resolve()}
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def _is_sif(image: str) -> bool:
    return image.endswith(".sif")
