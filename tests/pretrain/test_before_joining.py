"""What cannot be is refused before the processes join, and by `launch slurm` before the job is queued."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import Data, run, write_recipe

from data_tools.errors import UsageError
from launch.slurm import checks
from launch.slurm.submit import parse
from pretrain.config.batch_split import split_job
from pretrain.config.loading import load

# Each is refused for two processes.
WRONG = {
    "data.augment.erase=2": "data.augment.erase=2",
    "data.augment.crop_ratio=[0,1]": "data.augment.crop_ratio",
    "data.augment.crop_ratio=[2,1]": "data.augment.crop_ratio",
    "data.augment.randaugment_magnitude=31": "randaugment_magnitude=31",
    "data.eval_resize=8": "data.eval_resize=8",
    "optim.betas=[0.9,1]": "optim.betas",
    "objective.label_smoothing=1": "objective.label_smoothing=1",
    "engine.kind=fsdp engine.shard_size=4": "engine.shard_size=4 does not divide the 2 processes",
    "optim.freeze=[nothing]": "optim.freeze: the model has no 'nothing'",
    "optim.freeze=[encoder,head]": "nothing is left to train",
    "model.num_heads=5": "cannot be divided among 5 heads",
    "model.final_norm=pooled": "data.max_tiles=1",
    "data.augment.mixup=0.2 train.batch_size=6": "train.batch_size=6: a process computes 3 images at a time",
    "data.augment.cutmix=0.2 train.micro_batch_size=3": "train.micro_batch_size=3: a process",
    "fault=kill:rank=2": "no rank 2 of 2",
    "fault=kill:step=0": "step must be at least 1",
    "fault=slow:seconds=nan": "seconds must be at least 0",
    "fault=nan:steps=-1": "steps must be at least 1",
}


@pytest.mark.parametrize("settings", WRONG)
def test_a_job_is_refused_when_it_is_queued(data: Data, tmp_path: Path, settings: str) -> None:
    recipe = write_recipe(tmp_path, data)
    sizes = ("--nodes=2", "--gpus-per-node=0", "--tasks-per-node=1", f"run.dir={tmp_path}")
    with pytest.raises(UsageError) as error:
        checks.check_settings(parse([str(recipe), *sizes, *settings.split()]))
    assert WRONG[settings] in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("settings", ["optim.freeze=[nothing]", "data.augment.mixup=0.2 train.batch_size=3"])
def test_a_run_is_refused_before_it_has_a_folder(data: Data, tmp_path: Path, settings: str) -> None:
    done = run("pretrain", write_recipe(tmp_path, data), f"run.dir={tmp_path}", *settings.split())
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "tiny/config.yaml").exists()


def test_one_process_is_one(data: Data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    assert str(split_job(load(str(recipe), []), 1)) == "12 images = 1 rank × 12 × 1 accumulation"
