"""Run by torchrun on 2 processes: each engine in turn must do what the functions below are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from data_tools.tile_batch import TileBatch
from pretrain.config.schema import Config, DataConfig, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from pretrain.engine.base import Engine
from pretrain.engine.kinds import ENGINES
from pretrain.engine.optim import freeze
from pretrain.model.build import build_model
from pretrain.model.init import InitialValue, random_values
from pretrain.run import processes

warnings.filterwarnings("ignore")
KINDS = [("ddp", 2), ("fsdp", 2), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
CLASSES, ALONE, EACH = 5, "encoder.patch_embed", 4
SIZES = {"patch_size": 8, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48}


def images(seed: int) -> TileBatch:
    torch.manual_seed(seed)
    ones = torch.ones(EACH, dtype=torch.int64)
    return TileBatch(
        tiles=torch.randint(0, 256, (EACH, 3, 32, 32), dtype=torch.uint8),
        tiles_per_image=ones,
        grid=torch.ones(EACH, 2, dtype=torch.int64),
        labels=ones,
        weight=ones.float(),
        position=ones,
        sample=ones,
    )


def build(kind: str, stage: int, precision: str, frozen: list[str], **model: object) -> Engine:
    config = Config(
        data=DataConfig(tile_size=32),
        model=ModelConfig(name="vit_ti16", **SIZES, **model),
        optim=OptimConfig(name="sgd", clip_norm=0.0, weight_decay=0.0),
        train=TrainConfig(steps=1, batch_size=4 * EACH, micro_batch_size=EACH),
        engine=EngineConfig(kind=kind, zero_stage=stage, precision=precision),
    )
    with torch.device("meta"):
        empty = build_model(config, CLASSES)
    freeze(empty, frozen)
    return ENGINES[kind](config, world, empty, values(config))


def values(config: Config) -> InitialValue:
    with torch.device("meta"):
        return random_values(build_model(config, CLASSES), seed=3)


def parameters_are_the_initial_values_in_fp32(engine: Engine) -> None:
    initial = values(engine.config)
    for item in engine.training_ranges():
        kind, name = item.key.split("/", 1)
        if kind == "model":
            wanted = initial(name, torch.Size(item.shape)).reshape(-1)
            assert torch.equal(item.data, wanted[item.offset :][: item.data.numel()]), name


def gradients_are_summed_up_in_fp32(engine: Engine) -> None:
    """One of four parts, over two processes and two micro-batches, is 512 times the others.

    ZeRO-2 and 3 round the sum of a micro-batch to bf16: there the first one loses its smaller part.
    """
    settings, small = engine.config.engine, 2.0**-9
    kept = 2 if settings.kind == "deepspeed" and settings.zero_stage > 1 else 3
    for micro in range(2):
        part = 1.0 if (world.rank, micro) == (0, 0) else small
        engine.train_micro_batch(
            images(world.rank), lambda logits, _, part=part: part * logits[:, 0], 0, micro, micro == 1
        )
    engine.update(1.0, 0)
    mine = [(i.offset, i.data[:1].tolist()) for i in engine.training_ranges() if i.key == "model/head.bias"]
    first = {data[0] for parts in world.gather(mine) for offset, data in parts if data and not offset}
    assert first == {-(1 + kept * small) / 4}, first


def load(engine: Engine, more: Callable[[str], float]) -> None:
    """Other values, by way of the ranges, as those of a checkpoint are loaded."""
    with torch.no_grad():
        for item in engine.training_ranges():
            kind, name = item.key.split("/", 1)
            item.data.add_(more(name) if kind == "model" else 0.0)
    engine.loaded()


def noise_is_another_in_each_process(engine: Engine) -> None:
    load(engine, lambda name: 0.1)
    loss = engine.train_micro_batch(images(0), lambda logits, _: logits.square().sum(1), 0, 0, True)
    found = world.gather(loss.item())
    assert len(set(found)) == len(found), found


def loaded_values_of_frozen_parameters_are_computed_with(engine: Engine) -> None:
    more = lambda name: 0.5 if name.startswith(ALONE) else 0.01  # noqa: E731
    initial = values(engine.config)
    alone = build_model(engine.config, CLASSES).eval()
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            parameter.copy_(initial(name, parameter.shape))
            parameter.add_(more(name))
        load(engine, more)
        torch.testing.assert_close(engine.logits(images(0)), alone(images(0)), atol=1e-5, rtol=1e-5)


world = processes.start(60)
torch.set_num_threads(1)
for kind in KINDS:
    engine = build(*kind, "bf16", [], head="linear")
    parameters_are_the_initial_values_in_fp32(engine)
    gradients_are_summed_up_in_fp32(engine)
    noise_is_another_in_each_process(build(*kind, "fp32", [], dropout=0.3))
    loaded_values_of_frozen_parameters_are_computed_with(build(*kind, "fp32", [ALONE]))
    if world.rank == 0:
        print(*kind, "holds", flush=True)
processes.leave(world, 0)
