"""Which values a configuration may hold."""

from __future__ import annotations

from operator import attrgetter

from data_tools.errors import UsageError

from .fault import parse_fault
from .keys import nearest
from .schema import Config, DataConfig, EngineConfig, TrainConfig

CHOICES: dict[str, tuple[object, ...]] = {
    "run.resume": ("auto", "never"),
    "data.eval_resample": ("bicubic", "bilinear"),
    "model.head": ("mlp", "linear"),
    "model.head_activation": ("tanh", "relu", "gelu", "gelu_tanh", "silu"),
    "model.pool": ("cls", "mean", "map"),
    "model.final_norm": ("tokens", "pooled"),
    "model.activation": ("gelu", "gelu_tanh", "quick_gelu", "relu", "selu", "silu"),
    "model.position": ("learned", "sincos2d"),
    "objective.name": ("softmax", "sigmoid", "regression", "masked_patches"),
    "optim.name": ("adamw", "sgd"),
    "optim.schedule": ("constant", "linear", "cosine", "rsqrt"),
    "engine.kind": ("ddp", "fsdp", "deepspeed"),
    "engine.zero_stage": (1, 2, 3),
    "engine.offload": ("none", "optimizer", "all"),
    "engine.precision": ("bf16", "fp32"),
    "engine.activation_checkpointing": ("none", "full", "selective"),
    "checkpoint.on_error": ("stop", "continue"),
    "tracking.wandb": ("offline", "online", "disabled"),
}

POSITIVE = (
    "data.max_pixels",
    "data.tile_size",
    "data.max_tiles",
    "optim.lr",
    "train.batch_size",
    "train.log_every",
    "train.step_timeout",
    "train.max_nonfinite",
    "checkpoint.every",
    "launch.max_restarts",
    "launch.join_timeout",
)

NOT_NEGATIVE = (
    "run.seed",
    "data.workers",
    "data.lanes",
    "data.chunk",
    "data.window",
    "data.eval_resize",
    "model.registers",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.warmup_steps",
    "train.steps",
    "train.epochs",
    "train.micro_batch_size",
    "train.eval_every",
    "engine.shard_size",
    "checkpoint.keep",
    "checkpoint.keep_every",
)


def check(config: Config) -> None:
    """Raises UsageError, naming the key, for a value that no run can have."""
    for key, choices in CHOICES.items():
        value = attrgetter(key)(config)
        if value not in choices:
            words = [str(choice) for choice in choices]
            raise UsageError(f"{key}={value}: {key} is one of {', '.join(words)}{nearest(value, words)}")
    for key in POSITIVE + NOT_NEGATIVE:
        value = attrgetter(key)(config)
        if value < 0 or (value == 0 and key in POSITIVE):
            raise UsageError(f"{key}={value}: {key} must be {'above' if key in POSITIVE else 'at least'} 0")
    if not 0 < config.optim.layer_decay <= 1:
        raise UsageError(f"optim.layer_decay={config.optim.layer_decay}: it must be above 0 and at most 1")
    if not 0 <= config.optim.ema < 1:
        raise UsageError(f"optim.ema={config.optim.ema}: it must be at least 0 and below 1")
    if config.checkpoint.keep_best and not config.data.val:
        raise UsageError("checkpoint.keep_best=true needs data.val: its top-1 decides which is the best")
    _check_offload(config.engine)
    if config.engine.shard_size and config.engine.kind != "fsdp":
        raise UsageError(
            f"engine.shard_size={config.engine.shard_size}: engine.kind={config.engine.kind} does not group "
            f"its processes: set it to 0, or set engine.kind=fsdp"
        )
    if not 0 <= config.data.max_bad_fraction <= 1:
        raise UsageError(f"data.max_bad_fraction={config.data.max_bad_fraction}: it must be between 0 and 1")
    if bool(config.train.steps) == bool(config.train.epochs):
        raise UsageError("set one of train.steps and train.epochs to a number above 0")
    if config.objective.label_smoothing and config.objective.name not in ("softmax", "sigmoid"):
        raise UsageError(
            f"objective.label_smoothing={config.objective.label_smoothing}: objective.name="
            f"{config.objective.name} has no classes to smooth"
        )
    training_sources(config.data)
    val = config.data.val
    if val and not isinstance(val, str) and not _are_shards(val):
        raise UsageError(f"data.val: {val} is not a folder of shards, nor a pattern or a list of shards")
    if config.engine.compile and config.model.attention_dropout:
        raise UsageError("model.attention_dropout and engine.compile=true do not go together: leave one out")
    _check_skip(config.train)
    parse_fault(config.fault)
    if config.data.sequential:
        _check_sequential(config)
    low, high = config.data.augment.crop_scale
    if not 0 < low <= high <= 1:
        raise UsageError(f"data.augment.crop_scale=[{low}, {high}]: it must be 0 < low <= high <= 1")


def _check_skip(train: TrainConfig) -> None:
    for entry in train.skip:
        if len(entry) != 2 or not 1 <= entry[0] <= entry[1]:
            raise UsageError(f"train.skip: {entry} is not a range of steps; write [[first, last], ...]")
        if train.steps and entry[1] >= train.steps:
            raise UsageError(f"train.skip: {entry} reaches the last step: lower train.steps instead")


def _check_sequential(config: Config) -> None:
    if not isinstance(config.data.train, str):
        raise UsageError("data.sequential=true: data.train is one URL, not a mixture")
    if config.train.epochs:
        raise UsageError("data.sequential=true: set train.steps, as the length of an epoch is not known")
    if config.data.trace:
        raise UsageError("data.sequential=true: data.trace needs indexed shards, whose samples have a place")


def _check_offload(engine: EngineConfig) -> None:
    offered = {"ddp": (), "fsdp": ("all",), "deepspeed": ("optimizer", "all")}[engine.kind]
    if engine.offload not in ("none", *offered):
        alternative = f"it offers {' and '.join(offered)}" if offered else "it offers none"
        raise UsageError(
            f"engine.offload={engine.offload}: not with engine.kind={engine.kind}; {alternative}"
        )
    if engine.kind == "deepspeed" and engine.offload == "all" and engine.zero_stage < 3:
        raise UsageError("engine.offload=all: with engine.kind=deepspeed it needs engine.zero_stage=3")


def training_sources(data: DataConfig) -> list[tuple[str | list[str], float]]:
    """(shards, weight) of each source of data.train. Raises UsageError where it is written wrongly.

    The shards are a folder or a pattern, or a list of shards and patterns.
    """
    if not data.train:
        raise UsageError("data.train is empty: give the folder of the training shards, data.train=FOLDER")
    mixture = isinstance(data.train, list) and not _are_shards(data.train)
    entries = data.train if mixture else [{"shards": data.train}]
    sources: list[tuple[str | list[str], float]] = []
    for entry in entries:
        known = isinstance(entry, dict) and {"shards"} <= entry.keys() <= {"shards", "weight"}
        weight = entry.get("weight", 1.0) if known else None
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
            raise UsageError(
                f"data.train: {entry} is not a source; each is written {{shards: FOLDER, weight: NUMBER}}"
            )
        shards = entry["shards"]
        sources.append((shards if _are_shards(shards) else str(shards), float(weight)))
    return sources


def _are_shards(value: object) -> bool:
    """Whether it is a list of shards and patterns of shards."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)
