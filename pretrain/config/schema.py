"""What may be set: the groups and keys of a configuration, their defaults and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .limits import choice, count, number, simple_name

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "selu", "silu")


@dataclass
class RunConfig:
    """Where the run folder is, and whether the run resumes from its checkpoint."""

    name: str = simple_name("", forbidden="/\\")  # empty: the recipe's name
    dir: str = "runs"
    seed: int = count(0, at_most=2**63 - 1)
    # auto: resume where the run stopped; never: refuse a folder that holds a run; restart: begin again at
    # step 0, and keep what the run has so far in a folder before-N
    resume: str = choice("auto", "never", "restart")
    accept_new_order: bool = False  # resume although batch size, seed or data give another order of images


@dataclass
class AugmentConfig:
    """Random changes of the training images (data_tools/augment)."""

    # share of the area that is kept; (1, 1): no crop
    crop_scale: tuple[float, float] = number((1.0, 1.0), above=0, at_most=1)
    # width/height of the crop; with several tiles: times the image's own
    crop_ratio: tuple[float, float] = number((0.75, 1.3333), at_least=0.01, at_most=100)
    flip: bool = False
    randaugment_ops: int = count(0, at_most=100)  # operations of RandAugment on each image; 0: none
    randaugment_magnitude: int = count(10, at_most=30)  # as in big_vision's randaug(ops, magnitude)
    erase: float = number(0.0, at_least=0, at_most=1)  # probability of random erasing
    # alpha of Beta(alpha, alpha), one draw for each pair of images; 0: off
    mixup: float = number(0.0, at_least=0, at_most=100)
    # the same; with both, each pair takes one of them with probability 1/2
    cutmix: float = number(0.0, at_least=0, at_most=100)


@dataclass
class DataConfig:
    """The images: where they lie, in which order they come, and what is done to them."""

    # Folder of shards or its shardindex.json; a pattern, 'in1k-train-{0000..1023}.tar' or 'train-*.tar';
    # a list of these; or a mixture: [{shards: FOLDER, weight: 3}, {shards: ...}]
    train: Any = ""
    # true: data.train is a URL of shards that are read from front to back; the order is then not exact
    sequential: bool = False
    val: Any = ""  # as one source of train; empty: no evaluation
    workers: int = count(4, at_most=1024)  # decoding threads of each process; 0: decode in the training loop
    # 0: chosen by where the shards lie; chunk and window too (docs/order.md)
    lanes: int = count(0, at_most=2**24)
    # samples read together; with chunk and window 1 each epoch is an exact permutation
    chunk: int = count(0, at_most=2**24)
    window: int = count(0, at_most=2**24)  # chunks of a lane that are shuffled together
    # The run fails if more than this share of the samples is unreadable; one is allowed unless this is 0
    max_bad_fraction: float = number(0.01, at_least=0, at_most=1)
    max_pixels: int = count(67_108_864, at_least=1, at_most=2**40)
    tile_size: int = count(224, at_least=1, at_most=2**15)
    max_tiles: int = count(1, at_least=1, at_most=4096)
    # short side before the centre crop with one tile; 0: the tile size
    eval_resize: int = count(0, at_most=2**16)
    eval_crop: bool = True  # false: no crop, the whole image is resized to the tile
    eval_resample: str = choice("bicubic", "bilinear")
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean: tuple[float, float, float] = number((0.5, 0.5, 0.5), at_least=0, at_most=1)
    std: tuple[float, float, float] = number((0.5, 0.5, 0.5), at_least=1e-3, at_most=1000)
    trace: bool = False  # write every delivered sample's position, key and pixel checksum to trace/


@dataclass
class BackboneConfig:
    """The ResNet of a hybrid; the defaults are Big Transfer's, as the Vision Transformer uses it."""

    depths: list[int] = count([3, 4, 9], at_least=1, at_most=1000)  # units of each stage
    stem: int = count(64, at_least=1, at_most=2**16)  # channels of the first convolution
    # channels after each stage; empty: 4, 8, ... · stem
    widths: list[int] = count([], at_least=1, at_most=2**20)
    groups: int = count(32, at_least=1, at_most=2**16)  # of each group norm
    unit: str = choice("bottleneck", "preactivation")
    activation: str = choice("relu", *ACTIVATIONS)
    padding: str = choice("same", "symmetric")
    pool_padding: bool = True  # pad as for `same` before the stem's pooling
    standardize: str = choice("var", "std")  # whether epsilon is added to the variance or to its root
    norm_eps: float = number(1e-5, above=0, at_most=1)
    # once it is reached, further stages dilate their kernels instead of striding
    output_stride: int = count(32, at_least=4, at_most=2**16)

    def __post_init__(self) -> None:
        if not self.widths:
            self.widths = [4 * self.stem * 2**stage for stage in range(len(self.depths))]


@dataclass
class ModelConfig:
    """The sizes and parts of the network."""

    name: str = "vit_s16"  # a row of pretrain/model/variants.py, which gives the fields that are null
    head: str = choice("mlp", "linear")  # mlp: Linear, activation, Linear; linear: one zero-initialised layer
    head_hidden: int | None = count(None, at_least=1, at_most=2**20)  # null: embed_dim
    head_activation: str = choice("tanh", "relu", "gelu", "gelu_tanh", "silu")
    # first value of the last bias; -10 suits objective.name=sigmoid
    head_bias: float = number(0.0, at_least=-1000, at_most=1000)
    pool: str = choice("cls", "mean", "map")  # map: a learned probe attends to all patches
    class_token: bool | None = None  # null: only if pool is cls
    pre_norm: bool = False  # a norm before the first block, and patches without a bias
    final_norm: str = choice("tokens", "pooled")  # before (tokens) or after the pool
    num_classes: int | None = count(None, at_least=1, at_most=2**24)  # null: as in classes.json
    patch_size: int | None = count(None, at_least=1, at_most=2**15)
    embed_dim: int | None = count(None, at_least=1, at_most=2**16)
    num_layers: int | None = count(None, at_least=1, at_most=1000)
    num_heads: int | None = count(None, at_least=1, at_most=2**10)
    mlp_dim: int | None = count(None, at_least=1, at_most=2**20)
    backbone: BackboneConfig | None = None  # of a hybrid; null: as the name says
    activation: str = choice(*ACTIVATIONS)
    mlp: str = choice("plain", "swiglu")  # of the blocks; swiglu has silu for its activation
    norm: str = choice("layer", "rms")
    qkv_bias: bool | None = None  # null, here and in the next two: as the name says
    qk_norm: bool | None = None  # norms over the queries and keys of each head
    parallel: bool | None = None  # attention and MLP side by side
    # first value of a learned scale of each branch; null: no scale
    layer_scale: float | None = number(None, above=0, at_most=1000)
    registers: int = count(0, at_most=1000)  # learned tokens without a position, in every tile
    norm_eps: float = number(1e-6, above=0, at_most=1)
    # rope2d: no table, queries and keys turn with the place of their patch in the image
    position: str = choice("learned", "sincos2d", "rope2d")
    use_rope: bool = False  # torchtune's: beside the table, they turn with the place in the tile
    dropout: float = number(0.0, at_least=0, below=1)
    # of the attention weights; not with engine.compile
    attention_dropout: float = number(0.0, at_least=0, below=1)
    drop_path: float = number(0.0, at_least=0, below=1)

    def __post_init__(self) -> None:
        if isinstance(self.backbone, dict):
            self.backbone = BackboneConfig(**self.backbone)


@dataclass
class ObjectiveConfig:
    """What training minimises."""

    name: str = choice("softmax", "sigmoid", "regression", "masked_patches")  # docs/objectives.md
    label_smoothing: float = number(0.0, at_least=0, below=1)


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = choice("adamw", "sgd")
    lr: float = number(1e-3, above=0, at_most=1000)
    # as in torch's AdamW: multiplied by the learning rate at every step
    weight_decay: float = number(0.1, at_least=0, at_most=1000)
    betas: tuple[float, float] = number((0.9, 0.999), at_least=0, below=1)
    momentum: float = number(0.9, at_least=0, below=1)  # sgd
    clip_norm: float = number(1.0, at_least=0, at_most=1e9)  # 0: no clipping
    warmup_steps: int = count(0)
    schedule: str = choice("cosine", "constant", "linear", "rsqrt")
    # Parameters, or modules such as [encoder] for a linear probe, that keep their first values
    freeze: list[str] = field(default_factory=list)
    # the learning rate of a block is this times that of the block after it
    layer_decay: float = number(1.0, above=0, at_most=1)
    # decay of the weights' moving average, which evaluations then use; 0: no average
    ema: float = number(0.0, at_least=0, below=1)


@dataclass
class TrainConfig:
    """How long a run trains, with which batches, and when it gives up."""

    steps: int = count(0)  # give steps or epochs
    epochs: float = number(0.0, at_least=0, at_most=1e9)
    batch_size: int = count(1024, at_least=1, at_most=2**24)  # global
    # images that a process computes at a time; 0: all of its share of the batch
    micro_batch_size: int = count(0, at_most=2**24)
    log_every: int = count(50, at_least=1)
    eval_every: int = count(0)  # 0: only after the last step
    # seconds without progress, then the job ends and names the process that hangs
    step_timeout: int = count(1800, at_least=1, at_most=10**7)
    # steps in a row whose loss or gradient is not finite, then exit 4
    max_nonfinite: int = count(10, at_least=1)
    skip: list[list[int]] = count([], at_least=1)  # [[first, last], ...] steps to pass over


@dataclass
class EngineConfig:
    """How the model and its training state are spread over the processes."""

    kind: str = choice("fsdp", "ddp", "deepspeed")
    zero_stage: int = count(2, at_least=1, at_most=3)  # of engine.kind=deepspeed
    shard_size: int = count(0, at_most=2**20)  # fsdp: processes that share one copy of the state; 0: all
    reshard_after_forward: bool = True  # fsdp: False keeps blocks whole until their backward
    # to host memory; optimizer: deepspeed; all: fsdp, and deepspeed stage 3
    offload: str = choice("none", "optimizer", "all")
    precision: str = choice("bf16", "fp32")
    # selective keeps matrix products and attention
    activation_checkpointing: str = choice("none", "full", "selective")
    compile: bool = False  # each block by torch.compile


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and which stay."""

    every: int = count(1000, at_least=1)
    keep: int = count(3)  # how many of the newest stay; 0: all
    keep_every: int = count(0)  # checkpoints at multiples of this step stay too; 0: none
    keep_best: bool = False  # save at each best score on data.val (Evaluation.score), and keep that one too
    background: bool = True
    on_error: str = choice("stop", "continue")  # if a checkpoint cannot be written


@dataclass
class TrackingConfig:
    """The copy of the metrics for Weights & Biases."""

    wandb: str = choice("offline", "online", "disabled")
    project: str = simple_name("vit-pretrain", forbidden="/\\#?%:")


@dataclass
class LaunchConfig:
    """SLURM jobs: restarts, and how long processes wait for each other."""

    # restarts in a row without a newer checkpoint, then the job is not requeued
    max_restarts: int = count(3, at_least=1)
    # seconds for the processes of a job to find each other
    join_timeout: int = count(60, at_least=1, at_most=10**7)


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
