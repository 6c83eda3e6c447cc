"""Models by their names on the Hugging Face hub, such as google/vit-base-patch16-224."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from data_tools.errors import UsageError

from .files import CONFIG, INDEX, PREPROCESSOR

# What timm, other programs and browsers write before such names.
PREFIXES = ("hf-hub:", "hf_hub:", "hf://", "https://huggingface.co/")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = (".safetensors", ".npz", ".bin", ".pth", ".pt", ".tar", ".ckpt", ".json")


def is_hub_name(init: str) -> bool:
    """Whether `init` is written like OWNER/NAME, and neither it nor a folder OWNER lies here."""
    if init.startswith(PREFIXES):
        return True
    written = NAME.fullmatch(init) is not None and not init.endswith(FILES)
    return written and not Path(init).exists() and not Path(init.partition("/")[0]).exists()


def download(init: str) -> Path:
    """The folder with the model `init` of the hub; it is downloaded unless it is in the hub's cache.

    Raises UsageError where huggingface_hub is not installed, with the command to type, and where it fails.
    """
    name = init
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    try:
        hub = import_module("huggingface_hub")
    except ImportError:
        raise UsageError(
            f"{init}: there is no such file or folder. If it is a model of the Hugging Face hub: "
            f"pip install huggingface_hub, and the same command downloads it; or download it elsewhere, "
            f"hf download {name} --local-dir FOLDER, and give init=FOLDER"
        ) from None
    try:
        found = hub.snapshot_download(
            name, allow_patterns=[CONFIG, PREPROCESSOR, INDEX, "model.safetensors", "model-*.safetensors"]
        )
    except Exception as error:  # the library has no common base of its errors, and lets those of others pass
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"{init}: there is no such file or folder, and it could not be had from the Hugging Face hub: "
            f"{text[0]}"
        ) from None
    folder = Path(found)
    if not [*folder.glob("*.safetensors")]:
        raise UsageError(
            f"{init}: it has no safetensors on the Hugging Face hub; if it has a pickle, "
            f"hf download {name} --local-dir FOLDER, and give init=FOLDER, which then says how to convert it"
        )
    return folder
