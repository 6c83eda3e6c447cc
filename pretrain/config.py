"""The configuration: its schema, and how a YAML recipe and key=value become one checked object.

Nothing here imports torch, so that a wrong key is answered within a moment and before any process group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data_tools.errors import UsageError

from .checks import check
from .keys import check_key, known_keys, leaf_keys


@dataclass
class RunConfig:
    name: str = ""  # empty: the recipe's name
    dir: str = "runs"
    seed: int = 0
    resume: str = "auto"  # auto: go on where the run stopped | never: refuse a folder that holds a run
    accept_new_order: bool = False  # go on although batch size, seed or data give another order of images


@dataclass
class AugmentConfig:
    crop_scale: tuple[float, float] = (1.0, 1.0)  # share of the area that is kept; (1, 1): no crop
    crop_ratio: tuple[float, float] = (
        0.75,
        1.3333,
    )  # width/height; several tiles: times the image's
    flip: bool = False
    randaugment_ops: int = 0  # operations of RandAugment on each image; 0: none
    randaugment_magnitude: int = 10  # 0 to 30, as in big_vision's randaug(ops, magnitude)
    erase: float = 0.0  # probability of random erasing
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), one draw for each pair of images; 0: off
    cutmix: float = 0.0  # the same; with both, each pair takes one of them with probability 1/2


@dataclass
class DataConfig:
    # Folder of shards, or its shardindex.json, or a mixture: [{shards: FOLDER, weight: 3}, {shards: ...}]
    train: Any = ""
    # true: data.train is a URL of shards that cannot be read by range; the order is then not exact
    sequential: bool = False
    val: str = ""  # empty: no evaluation
    workers: int = 4  # decoding threads of each process; 0: decode in the training loop
    lanes: int = 0  # 0: chosen from where the shards lie, as are chunk and window (docs/order.md)
    chunk: int = 0  # samples read together; 1 with window 1: an exact permutation each epoch
    window: int = 0  # chunks shuffled together in a lane
    max_bad_fraction: float = 0.01  # of the data set; one bad sample is tolerated unless this is 0
    max_pixels: int = 67_108_864
    tile_size: int = 224
    max_tiles: int = 1
    eval_resize: int = 0  # short side before the centre crop with one tile; 0: the tile size
    eval_crop: bool = True  # false: no crop, the whole image is resized to the tile
    eval_resample: str = "bicubic"  # bicubic | bilinear
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    trace: bool = False  # write every delivered sample's position, key and pixel checksum to trace/


@dataclass
class BackboneConfig:
    """The ResNet of a hybrid; the defaults are Big Transfer's, as the Vision Transformer uses it."""

    depths: list[int] = field(default_factory=lambda: [3, 4, 9])  # units of each stage
    widths: list[int] = field(default_factory=list)  # channels behind each stage; empty: 4 · stem, doubling
    stem: int = 64  # channels of the first convolution
    groups: int = 32  # of every norm
    unit: str = "bottleneck"  # bottleneck | preactivation
    activation: str = "relu"
    padding: str = "same"  # same | symmetric
    pool_padding: bool = True  # pad as `same` before the stem's pooling
    standardize: str = "var"  # var | std: whether epsilon is added to the variance or to its root
    norm_eps: float = 1e-5
    output_stride: int = 32  # stages that would pass it keep their resolution and dilate their kernels

    def __post_init__(self) -> None:
        if not self.widths:
            self.widths = [4 * self.stem * 2**stage for stage in range(len(self.depths))]


@dataclass
class ModelConfig:
    name: str = "vit_s16"  # a row of pretrain/model/variants.py, which gives the fields that are null
    head: str = "mlp"  # mlp: Linear, activation, Linear | linear: one zero-initialised layer
    head_hidden: int | None = None  # null: embed_dim
    head_activation: str = "tanh"
    head_bias: float = 0.0  # first value of the last bias; -10 suits objective.name=sigmoid
    pool: str = "cls"  # cls | mean | map (a learned probe attends to all patches)
    class_token: bool | None = None  # null: where the pool is cls
    pre_norm: bool = False  # a norm before the first block, and patches without a bias
    final_norm: str = "tokens"  # tokens | pooled: before or behind the pool
    num_classes: int | None = None  # null: as in classes.json
    patch_size: int | None = None
    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    backbone: BackboneConfig | None = None  # of a hybrid; null: as the name says
    activation: str = "gelu"  # gelu | gelu_tanh | quick_gelu | relu | selu | silu
    qkv_bias: bool | None = None  # null, as in the next two: as the name says
    qk_norm: bool | None = None  # norms over the queries and keys of each head
    parallel: bool | None = None  # attention and MLP side by side
    layer_scale: float | None = None  # first value of a learned scale of each branch; null: none
    registers: int = 0  # learned tokens without a position in every tile
    norm_eps: float = 1e-6
    position: str = "learned"  # learned | sincos2d
    dropout: float = 0.0
    attention_dropout: float = 0.0  # of the attention weights; not with engine.compile
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.backbone, dict):
            self.backbone = BackboneConfig(**self.backbone)


@dataclass
class ObjectiveConfig:
    name: str = "softmax"  # softmax | sigmoid | regression | masked_patches (docs/objectives.md)
    label_smoothing: float = 0.0


@dataclass
class OptimConfig:
    name: str = "adamw"  # adamw | sgd
    lr: float = 1e-3
    weight_decay: float = 0.1  # as torch's AdamW means it: times the learning rate at every step
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  # sgd
    clip_norm: float = 1.0  # 0: no clipping
    warmup_steps: int = 0
    schedule: str = "cosine"  # constant | linear | cosine | rsqrt
    # Parameters, or modules such as [encoder] for a linear probe, that keep their first values
    freeze: list[str] = field(default_factory=list)
    layer_decay: float = 1.0  # each block's rate is this times that of the block above it
    ema: float = 0.0  # decay of the weights' moving average, which is then evaluated; 0: none


@dataclass
class TrainConfig:
    steps: int = 0  # give steps or epochs
    epochs: float = 0.0
    batch_size: int = 1024  # global
    micro_batch_size: int = 0  # images of one process at a time; 0: all of its share
    log_every: int = 50
    eval_every: int = 0  # 0: only after the last step
    step_timeout: int = 1800  # seconds without progress after which the job ends and names who hangs
    max_nonfinite: int = 10  # steps in a row whose loss or gradient is not finite, then exit 4
    skip: list[list[int]] = field(default_factory=list)  # [[first, last], ...] steps to pass over


@dataclass
class EngineConfig:
    kind: str = "fsdp"  # ddp | fsdp | deepspeed
    zero_stage: int = 2  # deepspeed: 1 | 2 | 3
    shard_size: int = 0  # processes that share one copy of the state; 0: all of them
    reshard_after_forward: bool = True  # fsdp: False keeps blocks whole until their backward
    offload: str = "none"  # to host memory: none | optimizer (deepspeed) | all (fsdp; deepspeed stage 3)
    precision: str = "bf16"  # bf16 | fp32
    activation_checkpointing: str = "none"  # none | full | selective (matrix products and attention stay)
    compile: bool = False  # each block by torch.compile


@dataclass
class CheckpointConfig:
    every: int = 1000
    keep: int = 3  # newest ones that stay; 0: all
    keep_every: int = 0  # those whose step is a multiple of it stay as well; 0: none
    keep_best: bool = False  # save at each new best top-1 on data.val, and let that one stay as well
    background: bool = True
    on_error: str = "stop"  # when one cannot be written: stop | continue without it


@dataclass
class TrackingConfig:
    wandb: str = "offline"  # offline | online | disabled
    project: str = "vit-pretrain"


@dataclass
class LaunchConfig:
    max_restarts: int = 3  # restarts in a row without a newer checkpoint, then the job is not requeued
    join_timeout: int = 60  # seconds for the processes of a SLURM job to find each other


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    fault: str = ""  # a drill: something to break on purpose, such as kill:rank=1:step=5 (docs/survive.md)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run.dir) / self.run.name


ConfigT = TypeVar("ConfigT", bound=Config)


def load(
    path: str,
    overrides: Sequence[str],
    schema: type[ConfigT] = Config,  # type: ignore[assignment]
    defaults: dict[str, Any] | None = None,
) -> ConfigT:
    """Recipe `path`, then key=value `overrides`, checked against `schema`.

    defaults: values that take the place of the schema's own where the recipe is silent. Raises UsageError
    naming the key or value that is wrong, and the nearest right one.
    """
    config = _to_object(_merge(schema, path, overrides, defaults or {}), path)
    config.run.name = config.run.name or Path(path).stem
    check(config)
    return config


def save(config: Config, path: Path) -> None:
    """Write `config` as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def read(path: Path, schema: type[ConfigT] = Config) -> ConfigT:  # type: ignore[assignment]
    """The configuration of an earlier run, from its config.yaml."""
    return _to_object(_merge(schema, str(path), [], {}), str(path))


def changes(old: Config, new: Config) -> dict[str, str]:
    """The keys whose values differ, with "old → new"."""
    before, after = (flat(asdict(config)) for config in (old, new))
    return {key: f"{before.get(key)} → {after[key]}" for key in after if before.get(key) != after[key]}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _merge(schema: type[Config], path: str, overrides: Iterable[str], defaults: dict[str, Any]) -> DictConfig:
    merged = OmegaConf.unsafe_merge(OmegaConf.structured(schema), defaults)
    try:
        recipe = OmegaConf.load(path)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such recipe; those that come with the project lie in configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, DictConfig):
        raise UsageError(f"{path}: a recipe is a mapping of keys to values")
    keys = known_keys(schema)
    for key in leaf_keys(recipe):
        check_key(key, keys, path)
    dotlist = []
    for item in overrides:
        item = item.removeprefix("--")
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{item!r}: settings are written key=value")
        check_key(key, keys, "command line")
        dotlist.append(item if value else f"{key}=''")  # nothing behind the sign is the empty text, not null
    try:
        merged = OmegaConf.unsafe_merge(merged, recipe)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {_first_line(error)}") from None
    for item in dotlist:
        try:
            merged = OmegaConf.unsafe_merge(merged, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise UsageError(
                f"{item}: {_first_line(error).removeprefix(item.partition('=')[0] + ': ')}"
            ) from None
    assert isinstance(merged, DictConfig)
    return merged


def _to_object(merged: DictConfig, path: str) -> Any:
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {_first_line(error)}") from None
    return config


def _first_line(error: Exception) -> str:
    """What OmegaConf found wrong, in a user's words, with the key unless the caller names it."""
    text = str(error).strip().splitlines()
    key = next((line.split(":", 1)[1].strip() for line in text if "full_key" in line), "")
    kind = re.search(r"could not be converted to (\w+)", text[0])
    first = text[0]
    if kind and kind[1] in KINDS:
        first = f"it must be {KINDS[kind[1]]}"
    return f"{key}: {first}" if key else first


KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
