"""What W&B's environment variables say: they win over the configuration. Whether there is a W&B login."""

from __future__ import annotations

import os
from dataclasses import replace

from data_tools.errors import UsageError

from ..config.keys import nearest
from ..config.schema import Config, TrackingConfig

MODES = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "dryrun": "offline",
    "run": "online",
}
SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
NOT_USED = ("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")


def tracking(config: Config) -> tuple[TrackingConfig, list[str]]:
    """(how the run is tracked, sentences about the variables that change that or are not used).

    A variable that is empty is removed. Raises UsageError for a mode that there is not.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value]:
        del os.environ[name]
    asked, given = config.tracking, os.environ
    mode, disabled = given.get("WANDB_MODE", asked.wandb), given.get("WANDB_DISABLED", "")
    if mode not in MODES:
        raise UsageError(f"WANDB_MODE={mode}: one of {', '.join(MODES)}{nearest(mode, MODES)}")
    if disabled.lower() not in SWITCH:
        raise UsageError(f"WANDB_DISABLED={disabled}: it must be true or false")
    found = replace(asked, wandb=MODES[mode], project=given.get("WANDB_PROJECT", asked.project))
    if SWITCH[disabled.lower()]:
        found = replace(found, wandb="disabled")
    if found.wandb == asked.wandb == "disabled":
        return found, []
    loses = {"WANDB_MODE": asked.wandb, "WANDB_PROJECT": asked.project, "WANDB_NAME": config.run.name}
    loses |= {"WANDB_DISABLED": "" if found.wandb == "disabled" else disabled, "WANDB_DIR": "the run folder"}
    notes = [
        f"W&B: {name}={given[name]} wins over {lost or asked.wandb}"
        for name, lost in loses.items()
        if given.get(name, lost) != lost
    ]
    unused = [
        f"W&B: {name} is not used: a run goes on under its own id" for name in NOT_USED if name in given
    ]
    return found, notes + unused


def check_tracking(config: Config) -> list[str]:
    """The sentences of `tracking`. Raises UsageError for a variable that W&B refuses, or without a login.

    Not if the server cannot be reached: a run goes on without it.
    """
    found, notes = tracking(config)
    given = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    if found.wandb != "disabled" and (given or found.wandb == "online"):
        import wandb

        for name in given.keys() - NOT_USED:
            try:
                wandb.Settings().update_from_env_vars({name: given[name]})
            except Exception as error:  # of pydantic, or W&B's own; pydantic's text has several lines
                text = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
                raise UsageError(f"{name}: {' '.join(text.removeprefix('Value error, ').split())}") from None
        if found.wandb == "online" and not _logged_in():
            raise UsageError(
                "W&B is to be online (tracking.wandb, WANDB_MODE), but there is no login here: run "
                "`wandb login`, or set WANDB_API_KEY, or take tracking.wandb=offline"
            )
    return notes


def _logged_in() -> bool:
    """Whether W&B finds a key for its server, in the environment, .netrc or its settings."""
    import wandb

    before = {name: os.environ.get(name) for name in ("WANDB_MODE", "WANDB_SILENT")}
    os.environ |= {"WANDB_MODE": "online", "WANDB_SILENT": "true"}  # its settings may say offline
    try:
        return wandb.login(prompt=False, verify=False)
    except Exception as error:
        raise UsageError(f"the W&B login cannot be used: {error}") from None
    finally:
        wandb.teardown()  # or it would keep the environment of now
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
