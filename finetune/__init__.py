"""What is done with trained weights: fine-tune, evaluate, predict, export.

    from finetune import open_run

    run = open_run("runs/quickstart_finetune")
    run.predict(["digit.png"])[0].best

`open_run` is imported at first use, so that `python -m finetune` can handle signals before it imports torch.
"""

from typing import Any

from data_tools.errors import refuse_idle_module

refuse_idle_module()


def __getattr__(name: str) -> Any:
    if name != "open_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .predict import open_run

    return open_run
