"""The engines, by the value of engine.kind."""

from .base import Engine
from .ddp import DDP
from .fsdp import FSDP
from .zero import ZeRO

ENGINES: dict[str, type[Engine]] = {"ddp": DDP, "fsdp": FSDP, "deepspeed": ZeRO}
