"""One loss curve under every engine, at every size, in fp32 and bf16, with accumulation of 1 and of 2.

In all of it gradients are clipped, rates and decay differ from parameter to parameter, the position table is
fixed, a norm is frozen on request, and an average of the weights is kept and evaluated. The runs with
accumulation recompute activations, unless they are compiled.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from jobs import Data, losses, metrics, script, write_recipe

from pretrain.checkpoints.checkpoint import Checkpoint

ENGINES = {
    "ddp x 2": ("engine.kind=ddp",),
    "fsdp x 2": ("engine.kind=fsdp",),
    "fsdp whole x 2": ("engine.kind=fsdp", "engine.reshard_after_forward=false"),
    "zero-1 x 2": ("engine.kind=deepspeed", "engine.zero_stage=1"),
    "zero-2 x 2": ("engine.kind=deepspeed", "engine.zero_stage=2"),
    "zero-3 x 2": ("engine.kind=deepspeed", "engine.zero_stage=3"),
    "fsdp x 4": ("engine.kind=fsdp",),
    "hsdp 2 x 2 x 4": ("engine.kind=fsdp", "engine.shard_size=2"),
    "zero-3 x 4": ("engine.kind=deepspeed", "engine.zero_stage=3"),
}
OFFLOADED = {
    "fsdp offloaded x 2": ("engine.kind=fsdp", "engine.offload=all"),
    "zero-2 offloaded x 2": ("engine.kind=deepspeed", "engine.zero_stage=2", "engine.offload=optimizer"),
    "zero-3 offloaded x 2": ("engine.kind=deepspeed", "engine.zero_stage=3", "engine.offload=all"),
}
Kind = tuple[str, int, str]
RECOMPUTED, COMPILED = "engine.activation_checkpointing=full", "engine.compile=true"
KINDS: tuple[Kind, ...] = (  # precision, accumulation, what is done to the blocks
    ("fp32", 1, ""),
    ("fp32", 2, RECOMPUTED),
    ("fp32", 2, COMPILED),
    ("bf16", 1, ""),
    ("bf16", 2, RECOMPUTED),
)
KINDS_OF_4: tuple[Kind, ...] = (("fp32", 2, RECOMPUTED), ("bf16", 1, ""))  # a block never sees the size
NOISE = ("engine.kind=fsdp", "model.dropout=0.2", "model.drop_path=0.2")
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-2}
NORM_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
COMMON = (
    "train.batch_size=16",
    "train.steps=10",
    "optim.warmup_steps=2",
    "optim.schedule=constant",
    "optim.ema=0.9",
    "optim.layer_decay=0.8",
    "model.position=sincos2d",
    "optim.freeze=[encoder.ln_post]",
    "data.trace=false",
    "checkpoint.every=10",
)


CASES = [(engine, kind) for engine in ENGINES for kind in (KINDS_OF_4 if engine.endswith("x 4") else KINDS)]
CASES += [(engine, ("fp32", 2, RECOMPUTED)) for engine in OFFLOADED]


def norms(folder: Path) -> list[float]:
    """Of the gradients, before they are clipped."""
    return [row["grad_norm"] for row in metrics(folder) if "grad_norm" in row]


def folder_name(engine: str, kind: Kind) -> str:
    precision, accumulation, blocks = kind
    return f"{engine}-{precision}-{accumulation}-{blocks.rpartition('=')[2]}".replace(" ", "")


@pytest.fixture(scope="module")
def folder(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of all cases, and of one process."""
    root = tmp_path_factory.mktemp("parity")
    recipe = write_recipe(root, data)
    runs: dict[int, dict[str, list[str]]] = {0: {"alone": ["engine.kind=ddp"]}, 2: {}, 4: {}}
    for engine, kind in CASES:
        precision, accumulation, blocks = kind
        processes = int(engine[-1])
        settings = [*(ENGINES | OFFLOADED)[engine], f"engine.precision={precision}"]
        settings += [f"train.micro_batch_size={16 // processes // accumulation}", *filter(None, [blocks])]
        runs[processes][folder_name(engine, kind)] = settings
    runs[2]["noisy"] = [*NOISE]
    runs[2]["first part"] = [*NOISE, "run.name=noisy-stopped", "train.steps=5"]
    runs[2]["second part"] = [*NOISE, "run.name=noisy-stopped"]
    sgd = ["optim.name=sgd", "optim.lr=0.01"]
    runs[0]["sgd-alone"] = ["engine.kind=ddp", *sgd]
    for name, engine in (("sgd", "ddp x 2"), ("sgd 5", "zero-2 x 2"), ("sgd 8", "fsdp x 2")):
        steps = {"sgd": 5, "sgd 5": 8, "sgd 8": 10}[name]
        runs[2][name] = [*ENGINES[engine], *sgd, "run.name=sgd", f"train.steps={steps}"]
    runs[4]["another size"] = [*NOISE, "run.name=noisy-stopped", "train.steps=11"]
    for processes, named in runs.items():
        script(
            "pretrain/engine/parity.py",
            recipe,
            json.dumps(named),
            f"run.dir={root}",
            *COMMON,
            processes=processes,
        )
    return root


@pytest.mark.parametrize(("engine", "kind"), CASES, ids=[folder_name(*case) for case in CASES])
def test_losses_of_10_steps_agree(folder: Path, engine: str, kind: Kind) -> None:
    found_folder = folder / folder_name(engine, kind)
    wanted, found = losses(folder / "alone"), losses(found_folder)
    assert list(found) == list(wanted) == list(range(1, 11))
    assert norms(found_folder) == pytest.approx(norms(folder / "alone"), rel=NORM_TOLERANCE[kind[0]])
    for step in wanted:
        assert found[step] == pytest.approx(wanted[step], abs=TOLERANCE[kind[0]]), f"step {step}"


@pytest.mark.parametrize(("engine", "kind"), CASES, ids=[folder_name(*case) for case in CASES])
def test_the_averaged_weights_evaluate_alike(folder: Path, engine: str, kind: Kind) -> None:
    wanted = metrics(folder / "alone")[-1]
    found = metrics(folder / folder_name(engine, kind))[-1]
    assert found["weights"] == wanted["weights"] == "ema"
    assert found["loss"] == pytest.approx(wanted["loss"], abs=TOLERANCE[kind[0]])


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_frozen_keeps_its_first_values_and_has_no_state(folder: Path, engine: str) -> None:
    run = folder / folder_name(engine, ("fp32", 2, RECOMPUTED))
    found = Checkpoint(run / "checkpoints/step-00000010")
    weight, bias = (found.whole(f"model/encoder.ln_post.{name}") for name in ("weight", "bias"))
    assert torch.equal(weight, torch.ones(24)) and torch.equal(bias, torch.zeros(24))
    assert not any("ln_post" in key for key in found.tensors if not key.startswith("model/"))
    assert not torch.equal(found.whole("model/encoder.layers.1.norm1.weight"), torch.ones(24))


def test_sgd_goes_on_under_another_engine(folder: Path) -> None:
    wanted, found = losses(folder / "sgd-alone"), losses(folder / "sgd")
    assert found == pytest.approx(wanted, abs=1e-6) and len(found) == 10


def test_gradients_were_clipped(folder: Path) -> None:
    assert max(norms(folder / "alone")) > 0.5


def test_with_dropout_a_run_that_was_stopped_goes_on_bitwise(folder: Path) -> None:
    wanted, found = losses(folder / "noisy"), losses(folder / "noisy-stopped")
    assert wanted != losses(folder / "alone")
    assert {step: found[step] for step in wanted} == wanted
    first, second = (
        Checkpoint(folder / name / "checkpoints/step-00000010") for name in ("noisy", "noisy-stopped")
    )
    for key in first.tensors:
        assert torch.equal(first.whole(key), second.whole(key)), key


def test_with_dropout_another_size_is_warned_of(folder: Path) -> None:
    log = (folder / "noisy-stopped/logs/rank-0.log").read_text()
    says = "dropout is on and the run goes from 2 processes and micro-batches of 8 images to 4 and 4"
    assert log.count(says) == 1


def test_what_engines_compute_with() -> None:
    """First values, sums in fp32, noise and frozen parameters: tests/pretrain/engine/engines.py."""
    assert script("pretrain/engine/engines.py", processes=2).count("holds") == 5
