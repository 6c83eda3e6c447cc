"""What processes tell each other: no pickle, which whoever reaches their ports could turn into a program."""

from __future__ import annotations

import re
from pathlib import Path

from jobs import ROOT, TIMEOUT, Data, environment, metrics, status, write_recipe
from test_house import files
from warm import run_warm
from without_pickle import WORD

PICKLES = re.compile(
    r"(?m)^ *(import|from) (pickle|shelve|marshal|dill|cloudpickle|joblib|torch\.distributed\.checkpoint)\b"
    r"|\b(dist|distributed|c10d)\.\w*_object|\btorch\.(load|save)\(|allow_pickle=True|weights_only=False"
)
READS_PICKLES = {  # by the guard that stands before it
    "pretrain.checkpoints.foreign": "--trust-pickle",
    "finetune.formats.unpickle": "weights_only=True",
}


def test_a_job_uses_no_pickle(data: Data, tmp_path: Path) -> None:
    """Under DDP, FSDP and ZeRO, in steps, saves, a resume, evaluations, and where one process fails."""
    recipe = write_recipe(tmp_path, data)
    common = (f"run.dir={tmp_path}", "train.batch_size=8", "checkpoint.every=1", "data.workers=0")
    ends = {
        ("engine.kind=ddp", "train.steps=2"): 0,
        ("engine.kind=fsdp", "train.steps=3"): 0,
        ("engine.kind=deepspeed", "train.steps=9", "fault=disk:rank=1:step=4"): 1,
    }
    for settings, code in ends.items():
        call = [str(ROOT / "tests/without_pickle.py"), "pretrain", str(recipe), *common, *settings]
        done = run_warm(call, environment(), TIMEOUT, 2)
        assert WORD not in done.stderr and done.returncode == code, done.stdout + done.stderr
    run = tmp_path / "tiny"
    rows = metrics(run)
    assert [row["step"] for row in rows if "split" not in row][:3] == [1, 2, 3]
    assert [row["step"] for row in rows if "split" in row] == [2, 3]
    assert status(run)["state"] == "failed" and "of rank 1" in status(run)["reason"], status(run)


def test_the_entry_without_pickles_notices_one(tmp_path: Path) -> None:
    script = tmp_path / "gathers.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import without_pickle, torch.distributed as dist\n"
        "without_pickle.take_away()\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "dist.all_gather_object([None], {})\n"
    )
    done = run_warm([str(script)], environment(), TIMEOUT)
    assert done.returncode == 99 and WORD in done.stderr


def test_only_two_modules_read_pickles_and_none_sends_them() -> None:
    text = {module: (ROOT / path).read_text(encoding="utf-8") for module, path in files().items()}
    assert {module for module in text if PICKLES.search(text[module])} == READS_PICKLES.keys()
    for module, guard in READS_PICKLES.items():
        assert any(guard in text[other] for other in (module, "pretrain.checkpoints.__main__"))
