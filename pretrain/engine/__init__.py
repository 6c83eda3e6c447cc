"""How a model is spread over the processes. The training loop knows `Engine` and not which one it drives.

Nothing is imported here: checkpoints are read on machines that have no process group.
"""
