"""`python -m launch slurm` and `status`: what is checked, what the script says, and what becomes of a job."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import ROOT, Data, losses, run, status, succeed, write_recipe
from slurm_box import QueuedJob, Unavailable, call, cluster

from launch.__main__ import main
from launch.slurm.address import LOW, free_port
from launch.slurm.requeue import SlurmAction, decide, ended_life, read_action, seconds

GPU = ("--nodes", 1, "--gpus-per-node", 1)


@pytest.fixture
def recipe(data: Data, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, data)


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    try:
        with cluster():
            yield
    except Unavailable as reason:
        pytest.skip(str(reason))


def launch(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_script_is_valid_bash_short_and_without_secrets(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    site = recipe.parent / "site.yaml"
    site.write_text("{account: vision, modules: [cuda/12.8], environment: [NCCL_DEBUG=WARN], interface: ib0}")
    sizes = ("--nodes", "1-2", "--gpus-per-node", 2, "--cpus-per-task", 4, "--time", "1-00:00:00")
    settings = (f"run.dir={recipe.parent}", "run.name=a-run", "--cluster", site)
    for launcher in ("srun", "torchrun"):
        code, script, _ = launch(
            capsys, "slurm", recipe, *sizes, *settings, "--launcher", launcher, "--print", "data.val="
        )
        assert code == 0
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
        if shutil.which("shellcheck"):
            checked = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True)
            assert checked.returncode == 0, checked.stdout
        assert "very-secret" not in script and len(script.splitlines()) < 55
        for line in ("#SBATCH --nodes=1-2", "#SBATCH --account=vision", "export GLOO_SOCKET_IFNAME=ib0"):
            assert line in script.splitlines()
        assert "data.val=" in script and "run.name=a-run" in script


@pytest.mark.parametrize(
    ("image", "launcher", "says"),
    [
        (
            "nvcr.io#nvidia/pytorch:25.06-py3",
            "srun",
            r"--container-image='nvcr\.io#nvidia/pytorch:25\.06-py3' \\\n +--container-mounts={mounts} \\\n"
            r" +--container-workdir={here} \\\n +python -m pretrain ",
        ),
        (
            "/images/vit.sif",
            "torchrun",
            r"apptainer exec --nv --bind {mounts} --pwd {here} /images/vit\.sif "
            r"python -m torch\.distributed\.run ",
        ),
    ],
)
def test_a_container_has_the_folders_of_the_run_and_a_python_of_its_own(
    recipe: Path, data: Data, capsys: pytest.CaptureFixture[str], image: str, launcher: str, says: str
) -> None:
    sizes = ("--nodes", 1, "--gpus-per-node", 2, "--container", image, "--launcher", launcher)
    code, script, _ = launch(
        capsys, "slurm", recipe, *sizes, "--print", f"run.dir={recipe.parent}", "run.name=a-run"
    )
    assert code == 0
    folders = sorted([data.train, data.val, recipe.parent / "a-run", ROOT])
    pair = "{0}:{0}" if launcher == "srun" else "{0}"
    mounts = shlex.quote(",".join(pair.format(folder.resolve()) for folder in folders))
    here = shlex.quote(str(ROOT))
    assert re.search(says.format(mounts=re.escape(mounts), here=re.escape(here)), script), script
    python = shlex.quote(sys.executable)
    assert f"python={python}\n" in script, "address and requeue run outside the container"
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--nodes", 5, "--gpus-per-node", 1), "does not divide by 5"),
        (("--nodes", "4-", "--gpus-per-node", 1), "--nodes 4-"),
        (("--nodes", 1, "--gpus-per-node", 0), "--tasks-per-node"),
        (("--nodes", 1, "--gpus-per-node", 1, "optim.lrr=1"), "did you mean optim.lr"),
        (("--nodes", 1, "--gpus-per-node", 1, "data.train=/no/such"), "/no/such"),
        (("--nodes", 1, "--gpus-per-node", 1, "--cluster", "moon"), "moon.yaml"),
        (("--nodes", 1, "--gpus-per-node", 1, "run.name=a b"), "run.name"),
        (
            ("--nodes", 1, "--gpus-per-node", 1, "--stage", "finetune", "--after", 7, "init=/no/run"),
            "/no/run",
        ),
    ],
)
def test_what_the_job_would_be_refused_for_is_said_before_it_is_queued(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], says: str
) -> None:
    code, _, error = launch(capsys, "slurm", recipe, *arguments, f"run.dir={recipe.parent}/runs")
    assert code == 2 and says in error and error.count("\n") == 1
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("sbatch", [None, 'echo "no${RANK}$SLURM_JOB_ID  such\npartition" >&2; exit 1'])
def test_what_sbatch_refuses_leaves_everything_as_it_was(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sbatch: str | None
) -> None:
    programs, run = recipe.parent / "bin", recipe.parent / "deep/er/tiny"
    programs.mkdir()
    monkeypatch.setenv("RANK", "of another job")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", f"{programs}:/bin" if sbatch else str(programs))
    for name in ("sbatch", "squeue") if sbatch else ():
        (programs / name).write_text(f"#!/bin/sh\n{sbatch if name == 'sbatch' else ''}\n")
        (programs / name).chmod(0o755)

    def files() -> dict[Path, bytes]:
        return {path: (path.is_file() and path.read_bytes()) or b"" for path in recipe.parent.rglob("*")}

    for _ in range(2):
        before = files()
        code, _, error = launch(capsys, "slurm", recipe, *GPU, f"run.dir={run.parent}")
        assert code == 2 and error.count("\n") == 1 and files() == before
        says = (
            "sbatch is not on this machine"
            if sbatch is None
            else "no such partition; each of its nodes needs 1 GPUs and 2 CPUs"
        )
        assert says in error
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        (run / "slurm/job.sh").write_text("an earlier one")
    code, script, _ = launch(capsys, "slurm", recipe, *GPU, f"run.dir={run.parent}/other", "--print")
    assert code == 0 and script and files() == before, "--print writes nothing"


def test_a_run_that_is_at_work_elsewhere_or_lost_its_checkpoints_is_not_queued(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipe.parent / "bin").mkdir()
    (recipe.parent / "bin/sbatch").write_text("#!/bin/sh\necho asked >&2\nexit 1\n")
    (recipe.parent / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{recipe.parent}/bin:/bin")
    run = recipe.parent / "tiny"
    run.mkdir()
    for ago, says in ((5, "it is running as process 12 on node9"), (60, "asked")):
        facts = {"state": "running", "time": time.time() - ago, "pid": 12, "host": "node9"}
        (run / "status.json").write_text(json.dumps(facts))
        code, _, error = launch(capsys, "slurm", recipe, *GPU, f"run.dir={run.parent}")
        assert code == 2 and says in error
    lost = {"state": "stopped", "time": 0.0, "step": 40, "checkpoint": "step-00000040", "run_id": "a"}
    (run / "status.json").write_text(json.dumps(lost))
    for resume, says in (("auto", "40 steps, but"), ("restart", "asked")):
        code, _, error = launch(
            capsys, "slurm", recipe, *GPU, f"run.dir={run.parent}", f"run.resume={resume}"
        )
        assert code == 2 and says in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--nodes", "4-2"), "--nodes 4-2"),
        (("--nodes", "٣"), "--nodes"),
        (("--cpus-per-task", -1), "at least 0"),
        (("--mem", "much"), "--mem much"),
        (("--time", 2), "save_seconds"),
        (("--time", "1:2:3:4"), "--time 1:2:3:4"),
        (("--after", "soon"), "--after soon"),
        (("--container", "/no/such.sif"), "/no/such.sif"),
        (("run.dir={recipe}",), "cannot be written"),
    ],
)
def test_what_no_job_can_be_given_is_said_at_once(
    slurm: None, recipe: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], says: str
) -> None:
    where = f"run.dir={recipe.parent}/runs"
    given = [str(item).format(recipe=recipe) for item in arguments]
    code, _, error = launch(capsys, "slurm", recipe, *GPU, where, *given)
    assert code == 2 and says in error and error.count("\n") == 1
    assert not (recipe.parent / "runs").exists()


def test_a_run_has_one_job_which_is_shown_and_cancelled_while_it_waits(
    slurm: None, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs that wait for a time which never comes; one is chained to another on purpose."""
    site = recipe.parent / "site.yaml"
    site.write_text("sbatch: [--begin=now+1day]")
    run = recipe.parent / "runs/tiny"
    usual = (recipe, *GPU, "--cluster", site, f"run.dir={run.parent}")
    job = QueuedJob(run, *usual)
    code, _, error = launch(capsys, "slurm", *usual)
    assert code == 2 and f"SLURM job {job.id}: PENDING" in error and "launch cancel" in error
    chained = QueuedJob(run, *usual, "--after", job.id)
    third = QueuedJob(run, *usual, "--after", chained.id)
    follower = QueuedJob(run.parent / "other", *usual, "run.name=other", "--after", job.id)
    assert launch(capsys, "slurm", *usual)[0] == 2
    code, out, _ = launch(capsys, "status", run)
    assert code == 0 and all(f"job {other.id}: PENDING (" in out for other in (job, chained, third))
    code, out, _ = launch(capsys, "status", run.parent)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["other", "tiny"]
    assert out.count("PENDING (") == 4 and "None" not in out
    code, out, _ = launch(capsys, "cancel", run)
    assert code == 0 and f"job {follower.id} was to start after it" in out
    assert {queued.state for queued in (job, chained, third)} == {"CANCELLED"}
    assert "has not begun" in launch(capsys, "status", run)[1]
    code, _, error = launch(capsys, "slurm", *usual, "run.name=new", "--after", job.id)
    assert code == 2 and f"--after {job.id}: CANCELLED" in error
    assert "--after 99999: Invalid job id" in launch(capsys, "slurm", *usual, "--after", 99999)[2]
    assert launch(capsys, "cancel", run)[0] == 2, "nothing is left to cancel"
    assert "PartitionConfig): SLURM does not start it" in launch(capsys, "slurm", *usual, "--nodes", 3)[1]
    assert launch(capsys, "cancel", run)[0] == 0
    again = QueuedJob(run, *usual)
    call("scancel", again.id)
    code, out, _ = launch(capsys, "status", run)
    assert code == 1 and f"SLURM job {again.id} is no longer in the queue" in out


@pytest.mark.parametrize("requeued", [False, True])
def test_a_job_that_is_cancelled_has_saved_and_stays_away(
    slurm: None, recipe: Path, capsys: pytest.CaptureFixture[str], requeued: bool
) -> None:
    run = recipe.parent / "long"
    settings = (f"run.dir={run.parent}", "run.name=long", "train.steps=9999", "checkpoint.every=9999")
    usual = (recipe, "--nodes", 1, "--gpus-per-node", 1, "--time", 10, *settings)
    job = QueuedJob(run, *usual, "fault=slow:rank=0:seconds=0.2", "data.trace=false")
    job.wait_for_step(2)
    code, _, error = launch(capsys, "slurm", *usual)
    assert code == 2 and f"SLURM job {job.id}: RUNNING. " in error
    if requeued:
        call("scontrol", "requeue", job.id)
        job.wait_for_restart(1)
        assert f"SLURM job {job.id}: PENDING (" in launch(capsys, "status", run)[1]
    code, out, _ = launch(capsys, "cancel", run)
    assert code == 0 and f"job {job.id} is cancelled; it was {'PENDING' if requeued else 'RUNNING'}" in out
    code, out, _ = launch(capsys, "status", run, "--follow")
    assert code == 0 and f"{run}: stopped  step" in out and f"SLURM job {job.id}" in out
    assert job.state == "CANCELLED" and "checkpoint saved" in job.output
    step = status(run)["step"]
    code, _, error = launch(capsys, "slurm", *usual, f"train.steps={step}")
    assert code == 2 and f"is finished: step {step} of {step}" in error
    code, _, error = launch(capsys, "slurm", *usual, "run.resume=never")
    assert code == 2 and "run.resume=never" in error
    code, _, error = launch(capsys, "slurm", *usual, "run.seed=7")
    assert code == 2 and "another order of images" in error
    if not requeued:
        succeed("pretrain", recipe, *settings, f"train.steps={step + 1}", "data.trace=false")
        assert status(run)["state"] == "done" and status(run)["job"] is None, "it ran outside of SLURM"


def test_a_secret_in_the_site_settings_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = recipe.parent / "site.yaml"
    site.write_text("environment: [WANDB_API_KEY=abc]")
    code, _, error = launch(capsys, "slurm", recipe, "--nodes", 1, "--gpus-per-node", 1, "--cluster", site)
    assert code == 2 and "WANDB_API_KEY" in error and "abc" not in error


def life(**changes: Any) -> dict[str, Any]:
    usual = {
        "job": "7",
        "restart": 0,
        "code": 1,
        "state": "failed",
        "signal": None,
        "checkpoint": 10,
        "forced": False,
        "reason": "",
    }
    return usual | changes


PREEMPTED = {"code": 75, "state": "stopped", "signal": "SIGTERM", "forced": True}
STOPPED_BY_USR1 = {"code": 75, "state": "stopped", "signal": "SIGUSR1"}


@pytest.mark.parametrize(
    ("lives", "code"),
    [
        ([life(state="done", code=0)], 0),
        ([life(**PREEMPTED)], 75),
        ([life(**STOPPED_BY_USR1)], 75),
        ([life()], 75),
        ([life(code=2)], 2),
        ([life(code=3)], 3),
        ([life(code=4)], 4),
        ([life()] * 3, 75),
        ([life()] * 4, 1),
        ([life(**STOPPED_BY_USR1)] * 4, 1),
        ([life(**PREEMPTED)] * 20, 75),
        ([life(signal="SIGTERM")] * 4, 1),
        ([life(), life(), life(**PREEMPTED), life(), life()], 1),
        ([life(), life(), life(), life(checkpoint=11), life(checkpoint=11)], 75),
        ([life(job="6")] * 4 + [life()], 75),
    ],
)
def test_a_job_is_requeued_unless_it_is_over_would_repeat_or_gets_nowhere(
    lives: list[dict[str, Any]], code: int
) -> None:
    assert decide(lives, 3, SlurmAction())[0] == code


def test_a_cancelled_job_is_not_brought_back() -> None:
    assert decide([life(**PREEMPTED)], 3, SlurmAction(ends=True))[0] not in (0, 75)


@pytest.mark.parametrize(
    ("fields", "action"),
    [
        ("JobState=RUNNING PreemptTime=None Restarts=1 RunTime=00:01:00 TimeLimit=00:10:00", SlurmAction()),
        ("JobState=SIGNALING PreemptTime=2026-11-21T13:41:54 Restarts=1", SlurmAction(preempts=True)),
        (
            "JobState=COMPLETING Restarts=2 RunTime=00:00:00 TimeLimit=00:10:00",
            SlurmAction(ends=True, requeues=True),
        ),
        ("JobState=CANCELLED Restarts=1 RunTime=1-00:00:00 TimeLimit=UNLIMITED", SlurmAction(ends=True)),
        ("JobState=COMPLETING Restarts=1 RunTime=00:10:31 TimeLimit=00:10:00", SlurmAction()),
        ("", SlurmAction()),
    ],
    ids=["runs", "is being preempted", "requeued by someone", "cancelled", "at its limit", "no answer"],
)
def test_what_slurm_says_of_a_job(fields: str, action: SlurmAction) -> None:
    assert read_action(fields, restart=1) == action


@pytest.mark.parametrize(
    ("known", "srun", "state", "code"),
    [
        ({"state": "failed", "exit_code": 4, "reason": "x"}, 143, "failed", 4),
        ({"state": "stopped", "exit_code": 75, "signal": "SIGUSR1"}, 1, "stopped", 75),
        ({"state": "running"}, 137, "failed", 1),
        ({}, 2, "failed", 2),
        ({}, 75, "failed", 1),
        ({}, 143, "failed", 1),
        ({}, 0, "done", 0),
        ({}, 139, "failed", 1),
    ],
)
def test_what_the_run_says_goes_before_the_exit_code(
    known: dict[str, Any], srun: int, state: str, code: int
) -> None:
    found = ended_life(known, srun, "7", 0, 0, SlurmAction())
    assert (found.state, found.code) == (state, code)


@pytest.mark.parametrize("action", [SlurmAction(preempts=True), SlurmAction(ends=True)])
def test_a_job_that_slurm_stops_before_it_begins_is_no_failure(action: SlurmAction) -> None:
    found = ended_life({}, 143, "7", 0, 0, action)
    assert (found.state, found.code, found.forced) == ("stopped", 75, True)


def test_the_port_follows_from_the_job_and_moves_while_it_is_taken() -> None:
    import socket

    first = free_port(4321)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        assert free_port(4321) != first
    assert LOW <= first < LOW + 10000


def test_times_of_slurm() -> None:
    assert [seconds(text) for text in ("00:01:30", "1-00:00:00", "0")] == [90, 86400, math.inf]


def stops_and_resumes(job: QueuedJob) -> tuple[list[int], list[int]]:
    """The steps that lives of a job were stopped at, and those that later ones began with."""
    stops = re.findall(r"^stopped by SIG\w+ at step (\d+), checkpoint saved$", job.output, re.MULTILINE)
    resumes = re.findall(r"resumed from .*: step (\d+)", job.output)
    return [*map(int, stops)], [*map(int, resumes)]


def test_a_job_is_preempted_told_of_its_limit_and_loses_a_node_and_nothing_is_lost(
    slurm: None, recipe: Path
) -> None:
    """2 nodes × 2 processes; the last life has one node only. The long form: tests/drills/survive.py."""
    settings = ("train.steps=40", "checkpoint.every=5", "engine.kind=fsdp", "data.trace=false")
    succeed("pretrain", recipe, f"run.dir={recipe.parent}", "run.name=whole", *settings)
    folder = recipe.parent / "job"
    sizes = ("--nodes", "1-2", "--gpus-per-node", 2, "--time", 10, "--partition", "preempt")
    more = ("fault=slow:rank=0:seconds=0.2", f"run.dir={recipe.parent}", "run.name=job")
    job = QueuedJob(folder, recipe, *sizes, *settings, *more)
    try:
        job.wait_for_step(4)
        job.preempt()
        job.wait_for_restart(1)
        assert "stopped by SIGTERM at step" in job.output and "requeued" in job.output
        job.wait_for_step(12)
        call("scancel", "--signal=USR1", job.id)  # what --signal sends before the time limit
        job.wait_for_restart(2)
        assert "stopped by SIGUSR1 at step" in job.output
        job.wait_for_step(22)
        call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        job.wait_until(lambda: job.state == "COMPLETED")
    finally:
        subprocess.run(["scontrol", "update", "nodename=node2", "state=resume"], capture_output=True)
    assert job.field("ExitCode") == "0:0" and job.restarts == 3
    assert "4 ranks × 3" in job.output and "2 ranks × 6" in job.output
    assert losses(folder) == pytest.approx(losses(recipe.parent / "whole"), abs=1e-5)
    stopped, resumed = stops_and_resumes(job)
    assert resumed[:2] == stopped[:2], "a step was lost"
    found = status(folder)
    assert (found["state"], found["job"], found["restart"]) == ("done", job.id, 3)
    assert "SLURM job" in run("launch", "status", folder).stdout


TUNING = """
data: {{train: {train}, val: {val}, tile_size: 24, max_tiles: 4, workers: 1}}
model: {{head: linear}}
optim: {{name: sgd, lr: 0.05}}
train: {{steps: 3, batch_size: 12, log_every: 1}}
engine: {{precision: fp32}}
tracking: {{wandb: disabled}}
"""


def test_a_job_of_torchrun_that_is_requeued_by_an_administrator_is_followed_by_its_fine_tuning(
    slurm: None, recipe: Path, data: Data
) -> None:
    """Tiles of 24 pixels fit the pretrained model, which nobody knows yet, and not the usual one."""
    where, sizes = f"run.dir={recipe.parent}", ("--nodes", 2, "--gpus-per-node", 1, "--time", 10)
    settings = ("train.steps=24", "checkpoint.every=100", "data.trace=false", "fault=slow:seconds=0.3")
    folder, tuned = recipe.parent / "first", recipe.parent / "tuned"
    job = QueuedJob(folder, recipe, *sizes, "--launcher", "torchrun", where, "run.name=first", *settings)
    tuning = recipe.parent / "tuning.yaml"
    tuning.write_text(TUNING.format(train=data.train, val=data.val))
    follow = ("--stage", "finetune", "--after", job.id, f"init={folder}")
    second = QueuedJob(tuned, tuning, *sizes, *follow, where, "run.name=tuned")
    assert "PENDING (Dependency)" in run("launch", "status", tuned).stdout
    job.wait_for_step(4)
    call("scontrol", "requeue", job.id)
    job.wait_for_restart(1)
    job.wait_until(lambda: job.state == "COMPLETED")
    stopped, resumed = stops_and_resumes(job)
    assert len(stopped) == 1 and stopped == resumed, "a step was lost"
    assert sorted(losses(folder)) == list(range(1, 25))
    second.wait_until(lambda: second.state == "COMPLETED")
    assert f"init {folder}/checkpoints/step-00000024" in second.output
    assert (status(tuned)["state"], status(tuned)["step"]) == ("done", 3)


def test_a_task_that_fails_before_the_run_begins_does_not_requeue_it_for_ever(
    slurm: None, recipe: Path
) -> None:
    """srun ends the task beside it by SIGTERM, whose code of a stop that was asked for is the higher one."""
    broken, prolog, site = (recipe.parent / name for name in ("broken", "prolog.sh", "site.yaml"))
    broken.mkdir()
    (broken / "omegaconf.py").write_text("raise ImportError('broken on this node')\n")
    prolog.write_text(f'#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && echo export PYTHONPATH={broken}\nexit 0\n')
    prolog.chmod(0o755)
    site.write_text(f"srun: [--task-prolog={prolog}]")
    settings = (f"run.dir={recipe.parent}", "run.name=bad", "launch.max_restarts=1", "--cluster", site)
    job = QueuedJob(
        recipe.parent / "bad", recipe, "--nodes", 1, "--gpus-per-node", 2, "--time", 10, *settings
    )
    job.wait_until(lambda: job.state == "FAILED")
    assert job.restarts == 1 and "1 restarts in a row brought no newer checkpoint" in job.output
    done = run("launch", "status", job.folder, "--follow")
    assert done.returncode == 1
    assert "failed, exit code 1: the processes ended without writing a status" in done.stdout
