"""The tasks of a job in a container: pyxis with enroot, or apptainer if the image is a FILE.sif."""

from __future__ import annotations

import os
from pathlib import Path

from data_tools.errors import UsageError
from data_tools.shards.names import folders_of
from data_tools.shards.urls import is_url
from pretrain.config.checks import training_sources
from pretrain.config.schema import Config

from .quoting import quote

# Where the packages lie. A container has those of a checkout from here, installed ones from its image.
CODE = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (CODE / "pyproject.toml").is_file()


def check_image(image: str) -> None:
    """Raises UsageError for an image that is an option, or a file that is not there."""
    is_file = _is_sif(image) or image.endswith(".sqsh") or image.startswith(("/", "./", "../"))
    if image.startswith("-") or (is_file and not Path(image).exists()):
        raise UsageError(f"--container {image}: there is no such image on this machine")


def srun_options(image: str, config: Config) -> list[str]:
    """srun's options for pyxis; none for apptainer."""
    if _is_sif(image):
        return []
    mounts = ",".join(f"{folder}:{folder}" for folder in mounted(config))
    # Otherwise pyxis starts the task in the folder that the image names.
    return [
        f"--container-image={quote(image)}",
        f"--container-mounts={quote(mounts)}",
        f"--container-workdir={quote(os.getcwd())}",
    ]


def command_prefix(image: str, config: Config, gpus: bool) -> str:
    """What stands before `python` in the command of each task. gpus: whether the job uses GPUs."""
    path = f"env PYTHONPATH={quote(str(CODE))} " if IS_CHECKOUT and Path.cwd() != CODE else ""
    if not _is_sif(image):
        return path
    binds = quote(",".join(map(str, mounted(config))))
    nvidia = " --nv" if gpus else ""
    return f"apptainer exec{nvidia} --bind {binds} --pwd {quote(os.getcwd())} {quote(image)} {path}"


def mounted(config: Config) -> list[Path]:
    """The folders that the container must see: code, run, data, weights. None lies within another.

    Raises UsageError for one whose name a list of mounts cannot hold.
    """
    sources = [shards for shards, _ in training_sources(config.data)]
    read = [*sources, config.data.val]
    folders = {folder.resolve() for shards in read if shards for folder in folders_of(shards)}
    if (init := getattr(config, "init", "")) and not is_url(init) and Path(init).exists():
        path = Path(init).resolve()
        folders.add(path.parent if path.is_file() else path)
    folders |= {Path.cwd(), config.folder.resolve(), *([CODE] if IS_CHECKOUT else [])}
    for folder in folders:
        if set(",:") & set(str(folder)):
            raise UsageError(f"{folder}: a container cannot have a folder with , or : in its name: rename it")
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def _is_sif(image: str) -> bool:
    return image.endswith(".sif")
