"""How a model is spread over the processes. The training loop knows the interface `Engine` only.

Nothing is imported here: otherwise every import of `ranges`, to read a checkpoint for example, would load
FSDP and DeepSpeed too.
"""
