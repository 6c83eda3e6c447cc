"""What is done with trained weights: fine-tune, evaluate, predict, embed, export.

    from finetune import open_run

    run = open_run("runs/quickstart_finetune")
    run.predict(["digit.png"])[0].best
    run.embed(["digit.png"])

Names are imported at first use, so that `python -m finetune` handles signals before it imports torch.
"""

from importlib import import_module
from typing import Any

from data_tools.errors import refuse_idle_module

refuse_idle_module()


_NAMES = {
    "open_run": "predict",
    "ImageProcessor": "processors.image_processor",
    "TileProcessor": "processors.tile_processor",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
