"""Take trained weights on: fine-tune, evaluate, predict, hand them out.

    from finetune import open_run

    run = open_run("runs/quickstart_finetune")
    run.predict(["digit.png"])[0].best

Names are looked up at first use: `python -m finetune` answers signals before torch is imported.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "open_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .predict import open_run

    return open_run
