"""Which values a configuration may hold."""

from __future__ import annotations

from data_tools.errors import UsageError

from .fault import parse_fault
from .limits import check_limits
from .schema import Config, DataConfig, EngineConfig, TrainConfig


def check(config: Config) -> None:
    """Raises UsageError, naming the key, for a value that no run can have."""
    check_limits(config)
    if config.checkpoint.keep_best and not config.data.val:
        raise UsageError("checkpoint.keep_best=true needs data.val: its top-1 decides which is the best")
    _check_offload(config.engine)
    if config.engine.shard_size and config.engine.kind != "fsdp":
        raise UsageError(
            f"engine.shard_size={config.engine.shard_size}: engine.kind={config.engine.kind} does not group "
            f"its processes: set it to 0, or set engine.kind=fsdp"
        )
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
    resize, tile = config.data.eval_resize, config.data.tile_size
    if 0 < resize < tile:
        raise UsageError(
            f"data.eval_resize={resize} is less than data.tile_size={tile}: "
            f"set it to the tile size or more, or to 0"
        )
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.data.augment, key)
        if low > high:
            raise UsageError(f"data.augment.{key}=[{low}, {high}]: the first number is above the second")


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
