"""What a process holds under each engine, measured on 4 processes."""

from __future__ import annotations

import json
from pathlib import Path

from jobs import Data, script, write_recipe

from pretrain.checkpoints.checkpoint import Checkpoint, complete

SIZES = ("model.embed_dim=512", "model.mlp_dim=2048", "model.num_layers=6")
ZERO = {f"zero-{stage}": ["engine.kind=deepspeed", f"engine.zero_stage={stage}"] for stage in (1, 2, 3)}
RUNS = {"ddp": ["engine.kind=ddp"], "fsdp": ["engine.kind=fsdp"], **ZERO}
PROCESSES = 4
COMMON = ("train.steps=2", "train.batch_size=4", "data.max_tiles=1", "data.val=", "data.trace=false")


def test_no_process_holds_the_full_optimizer_state(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    imports = {"imports": RUNS["zero-3"]}  # they take memory too, but once
    runs = imports | {name: [*settings, *SIZES] for name, settings in RUNS.items()}
    output = tmp_path / "rises.json"
    settings = (f"run.dir={tmp_path}", *COMMON)
    script("pretrain/engine/memory.py", recipe, output, json.dumps(runs), *settings, processes=PROCESSES)
    rises = json.loads(output.read_bytes())

    found = Checkpoint(complete(tmp_path / "ddp/checkpoints")[0])
    parameters = 4 * sum(found.whole(key).numel() for key in found.tensors if key.startswith("model/"))
    moments = 2 * parameters
    built, peak = ({name: [rise[i] for rise in found] for name, found in rises.items()} for i in (0, 1))
    assert min(built["ddp"]) > moments, "the measure finds the state where it is held"
    saved = moments - moments // PROCESSES
    for name in ("fsdp", *ZERO):
        assert max(peak[name]) < min(peak["ddp"]) - saved, name
    assert max(*built["fsdp"], *built["zero-3"]) < moments, "nor the whole model while it is built"
