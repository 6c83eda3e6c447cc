"""What may be set: the groups and keys of a configuration, their defaults and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class RunConfig:
    """Where the run folder is, and whether the run resumes from its checkpoint."""

    name: str = ""  # empty: the recipe's name
    dir: str = "runs"
    seed: int = 0
    resume: str = "auto"  # auto: resume where the run stopped | never: refuse a folder that holds a run
    accept_new_order: bool = False  # resume although batch size, seed or data give another order of images


@dataclass
class AugmentConfig:
    """Random changes of the training images (data_tools/augment)."""

    crop_scale: tuple[float, float] = (1.0, 1.0)  # share of the area that is kept; (1, 1): no crop
    # width/height of the crop; with several tiles: times the image's own
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    flip: bool = False
    randaugment_ops: int = 0  # operations of RandAugment on each image; 0: none
    randaugment_magnitude: int = 10  # 0 to 30, as in big_vision's randaug(ops, magnitude)
    erase: float = 0.0  # probability of random erasing
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), one draw for each pair of images; 0: off
    cutmix: float = 0.0  # the same; with both, each pair takes one of them with probability 1/2


@dataclass
class DataConfig:
    """The images: where they lie, in which order they come, and what is done to them."""

    # Folder of shards, or its shardindex.json, or a mixture: [{shards: FOLDER, weight: 3}, {shards: ...}]
    train: Any = ""
    # true: data.train is a URL of shards that are read from front to back; the order is then not exact
    sequential: bool = False
    val: str = ""  # empty: no evaluation
    workers: int = 4  # decoding threads of each process; 0: decode in the training loop
    lanes: int = 0  # 0: chosen by where the shards lie; chunk and window too (docs/order.md)
    chunk: int = 0  # samples read together; with chunk and window 1 each epoch is an exact permutation
    window: int = 0  # chunks of a lane that are shuffled together
    # The run fails if more than this share of the samples is unreadable; one is allowed unless this is 0
    max_bad_fraction: float = 0.01
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
    widths: list[int] = field(default_factory=list)  # channels after each stage; empty: 4, 8, ... · stem
    stem: int = 64  # channels of the first convolution
    groups: int = 32  # of each group norm
    unit: str = "bottleneck"  # bottleneck | preactivation
    activation: str = "relu"
    padding: str = "same"  # same | symmetric
    pool_padding: bool = True  # pad as for `same` before the stem's pooling
    standardize: str = "var"  # var | std: whether epsilon is added to the variance or to its root
    norm_eps: float = 1e-5
    output_stride: int = 32  # once it is reached, further stages dilate their kernels instead of striding

    def __post_init__(self) -> None:
        if not self.widths:
            self.widths = [4 * self.stem * 2**stage for stage in range(len(self.depths))]


@dataclass
class ModelConfig:
    """The sizes and parts of the network."""

    name: str = "vit_s16"  # a row of pretrain/model/variants.py, which gives the fields that are null
    head: str = "mlp"  # mlp: Linear, activation, Linear | linear: one zero-initialised layer
    head_hidden: int | None = None  # null: embed_dim
    head_activation: str = "tanh"
    head_bias: float = 0.0  # first value of the last bias; -10 suits objective.name=sigmoid
    pool: str = "cls"  # cls | mean | map (a learned probe attends to all patches)
    class_token: bool | None = None  # null: only if pool is cls
    pre_norm: bool = False  # a norm before the first block, and patches without a bias
    final_norm: str = "tokens"  # tokens | pooled: before or after the pool
    num_classes: int | None = None  # null: as in classes.json
    patch_size: int | None = None
    embed_dim: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    backbone: BackboneConfig | None = None  # of a hybrid; null: as the name says
    activation: str = "gelu"  # gelu | gelu_tanh | quick_gelu | relu | selu | silu
    qkv_bias: bool | None = None  # null, here and in the next two: as the name says
    qk_norm: bool | None = None  # norms over the queries and keys of each head
    parallel: bool | None = None  # attention and MLP side by side
    layer_scale: float | None = None  # first value of a learned scale of each branch; null: no scale
    registers: int = 0  # learned tokens without a position, in every tile
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
    """What training minimises."""

    name: str = "softmax"  # softmax | sigmoid | regression | masked_patches (docs/objectives.md)
    label_smoothing: float = 0.0


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = "adamw"  # adamw | sgd
    lr: float = 1e-3
    weight_decay: float = 0.1  # as in torch's AdamW: multiplied by the learning rate at every step
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  # sgd
    clip_norm: float = 1.0  # 0: no clipping
    warmup_steps: int = 0
    schedule: str = "cosine"  # constant | linear | cosine | rsqrt
    # Parameters, or modules such as [encoder] for a linear probe, that keep their first values
    freeze: list[str] = field(default_factory=list)
    layer_decay: float = 1.0  # the learning rate of a block is this times that of the block after it
    ema: float = 0.0  # decay of the weights' moving average, which evaluations then use; 0: no average


@dataclass
class TrainConfig:
    """How long a run trains, with which batches, and when it gives up."""

    steps: int = 0  # give steps or epochs
    epochs: float = 0.0
    batch_size: int = 1024  # global
    micro_batch_size: int = 0  # images that a process computes at a time; 0: all of its share of the batch
    log_every: int = 50
    eval_every: int = 0  # 0: only after the last step
    step_timeout: int = 1800  # seconds without progress, then the job ends and names the process that hangs
    max_nonfinite: int = 10  # steps in a row whose loss or gradient is not finite, then exit 4
    skip: list[list[int]] = field(default_factory=list)  # [[first, last], ...] steps to pass over


@dataclass
class EngineConfig:
    """How the model and its training state are spread over the processes."""

    kind: str = "fsdp"  # ddp | fsdp | deepspeed
    zero_stage: int = 2  # deepspeed: 1 | 2 | 3
    shard_size: int = 0  # fsdp: processes that share one copy of the state; 0: all
    reshard_after_forward: bool = True  # fsdp: False keeps blocks whole until their backward
    offload: str = "none"  # to host memory: none | optimizer (deepspeed) | all (fsdp; deepspeed stage 3)
    precision: str = "bf16"  # bf16 | fp32
    activation_checkpointing: str = "none"  # none | full | selective (keeps matrix products, attention)
    compile: bool = False  # each block by torch.compile


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and which stay."""

    every: int = 1000
    keep: int = 3  # how many of the newest stay; 0: all
    keep_every: int = 0  # checkpoints at multiples of this step stay too; 0: none
    keep_best: bool = False  # save at each best score on data.val (Evaluation.score), and keep that one too
    background: bool = True
    on_error: str = "stop"  # if a checkpoint cannot be written: stop | continue without it


@dataclass
class TrackingConfig:
    """The copy of the metrics for Weights & Biases."""

    wandb: str = "offline"  # offline | online | disabled
    project: str = "vit-pretrain"


@dataclass
class LaunchConfig:
    """SLURM jobs: restarts, and how long processes wait for each other."""

    max_restarts: int = 3  # restarts in a row without a newer checkpoint, then the job is not requeued
    join_timeout: int = 60  # seconds for the processes of a SLURM job to find each other


@dataclass
class Config:
    """All settings of a pretraining run."""

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
    fault: str = ""  # a failure on purpose, for tests: kill:rank=1:step=5, ... (docs/survive.md)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run.dir) / self.run.name
