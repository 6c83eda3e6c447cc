"""What other programs call our settings: those of timm, transformers, torchtune, big_vision and Lightning."""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = {
    "run.name": "experiment exp_name run_name experiment_name",
    "run.dir": "output output_dir save_dir workdir log_dir",
    "run.resume": "resume_from_checkpoint auto_resume",
    "data.train": "data_dir data_path train_dir dataset dataset_dir train_path",
    "data.val": "val_dir val_path val_data validation",
    "data.tile_size": "image_size img_size input_size resolution crop_size",
    "data.max_tiles": "max_num_tiles num_tiles",
    "data.workers": "num_workers dataloader_num_workers",
    "data.mean": "image_mean",
    "data.std": "image_std",
    "data.augment.flip": "hflip",
    "data.augment.crop_scale": "scale",
    "data.augment.crop_ratio": "ratio",
    "data.augment.erase": "reprob random_erasing",
    "data.augment.mixup": "mixup_alpha",
    "data.augment.cutmix": "cutmix_alpha",
    "data.augment.randaugment_ops": "aa auto_augment randaug",
    "model.name": "arch architecture variant model_name",
    "model.embed_dim": "hidden_size width dim d_model hidden_dim",
    "model.num_layers": "depth num_hidden_layers n_layers",
    "model.num_heads": "heads num_attention_heads n_heads",
    "model.mlp_dim": "intermediate_size mlp_ratio ffn_hidden_size",
    "model.num_classes": "num_labels nb_classes",
    "model.dropout": "drop drop_rate hidden_dropout_prob",
    "model.attention_dropout": "attn_drop attn_drop_rate attention_probs_dropout_prob",
    "model.drop_path": "drop_path_rate stochastic_depth",
    "model.pool": "global_pool pool_type",
    "model.registers": "reg_tokens num_register_tokens",
    "model.norm_eps": "layer_norm_eps",
    "model.layer_scale": "init_values layerscale_value",
    "objective.name": "loss criterion",
    "objective.label_smoothing": "smoothing label_smoothing_factor",
    "optim.name": "opt optimizer",
    "optim.lr": "lr learning_rate base_lr blr",
    "optim.weight_decay": "wd",
    "optim.betas": "beta1 beta2 adam_beta1 adam_beta2 b1 b2 opt_betas",
    "optim.clip_norm": "grad_clip clip_grad max_grad_norm gradient_clip_val grad_clip_norm gradient_clipping",
    "optim.warmup_steps": "warmup warmup_epochs num_warmup_steps warmup_iters lr_warmup_iters",
    "optim.schedule": "sched scheduler lr_scheduler lr_scheduler_type lr_decay_style",
    "optim.layer_decay": "layerwise_lr_decay",
    "optim.ema": "ema_decay model_ema model_ema_decay",
    "train.steps": "max_steps total_steps num_steps train_iters max_iters",
    "train.epochs": "max_epochs num_epochs num_train_epochs total_epochs",
    "train.batch_size": "global_batch_size train_batch_size per_device_train_batch_size",
    "train.micro_batch_size": "train_micro_batch_size_per_gpu grad_accum_steps gradient_accumulation_steps "
    "accumulate_grad_batches",
    "train.log_every": "log_interval logging_steps log_every_n_steps log_training_steps",
    "train.eval_every": "eval_steps eval_interval val_check_interval",
    "engine.kind": "strategy",
    "engine.precision": "dtype amp bf16 fp16 mixed_precision",
    "engine.activation_checkpointing": "grad_checkpointing gradient_checkpointing",
    "engine.compile": "torchcompile torch_compile",
    "engine.offload": "cpu_offload fsdp_cpu_offload",
    "checkpoint.every": "save_steps save_interval save_every",
    "checkpoint.keep": "save_total_limit save_top_k",
    "tracking.project": "wandb_project",
    "init": "pretrained finetune checkpoint checkpoint_path initial_checkpoint",
}
_OURS = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}


def ours(key: str, keys: Iterable[str]) -> str | None:
    """Which of `keys` another program calls by the last part of `key`; None if there is none."""
    found = _OURS.get(key.rpartition(".")[2].lower().replace("-", "_"))
    return found if found and found in keys else None
