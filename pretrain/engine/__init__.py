"""How a model is spread over the processes. The training loop knows `Engine` and not which one it drives."""

from .base import Engine
from .ddp import DDP
from .fsdp import FSDP
from .zero import ZeRO

ENGINES: dict[str, type[Engine]] = {"ddp": DDP, "fsdp": FSDP, "deepspeed": ZeRO}
