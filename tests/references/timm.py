"""timm's VisionTransformer, plain and behind its ResNetV2, and how it reads Google's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import google
from .layers import ACTIVATIONS, Weights, attend, dense, norm, patches
from .resnet import Conv, Style, Unit, features, shapes_as_named

BACKBONE = "patch_embed.backbone."


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """resnet: in `config`, the depths and widths of the ResNet's stages and the channels of its stem."""
    width, patch, resnet = config["embed_dim"], config["patch_size"], config.get("resnet")
    side, inner = config["img_size"] // patch, int(width * config["mlp_ratio"])
    prefix = int(config.get("class_token", True)) + config.get("reg_tokens", 0)
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    if resnet:
        side = config["img_size"] // (2 ** (1 + len(resnet["layers"]))) // patch
        found, channels = _resnet_shapes(resnet), resnet["channels"][-1]
    if config.get("class_token", True):
        found["cls_token"] = (1, 1, width)
    if config.get("reg_tokens"):
        found["reg_token"] = (1, config["reg_tokens"], width)
    embedded = 0 if config.get("no_embed_class") else prefix
    found["pos_embed"] = (1, embedded + side * side, width)
    sizes: dict[str, tuple[int, ...]] = {"patch_embed.proj": (width, channels, patch, patch)}
    if config.get("pre_norm"):
        sizes["norm_pre"] = (width,)
    for block in (f"blocks.{index}." for index in range(config["depth"])):
        sizes |= {f"{block}norm1": (width,), f"{block}norm2": (width,)}
        sizes |= {f"{block}attn.qkv": (3 * width, width), f"{block}attn.proj": (width, width)}
        sizes |= {f"{block}mlp.fc1": (inner, width), f"{block}mlp.fc2": (width, inner)}
        if config.get("qk_norm"):
            sizes |= {f"{block}attn.{x}_norm": (width // config["num_heads"],) for x in "qk"}
        if config.get("init_values"):
            found |= {f"{block}ls{n}.gamma": (width,) for n in (1, 2)}
    sizes["fc_norm" if _norm_behind_pool(config) else "norm"] = (width,)
    if config.get("global_pool") == "map":
        found["attn_pool.latent"] = (1, 1, width)
        sizes |= {f"attn_pool.{name}": (width, width) for name in ("q", "proj")}
        sizes |= {"attn_pool.kv": (2 * width, width), "attn_pool.norm": (width,)}
        sizes |= {"attn_pool.mlp.fc1": (inner, width), "attn_pool.mlp.fc2": (width, inner)}
    if config["num_classes"]:
        sizes["head"] = (config["num_classes"], width)
    for name, size in sizes.items():
        found[f"{name}.weight"] = size
        unbiased = name == "patch_embed.proj" and config.get("pre_norm")
        if not unbiased and (config.get("qkv_bias", True) or not name.endswith("attn.qkv")):
            found[f"{name}.bias"] = size[:1]
    return found


def _resnet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    stages = zip(config["layers"], config["channels"], strict=True)
    names = ("stem.conv", "stem.norm", "stages.{}.blocks.{}.")
    return shapes_as_named(BACKBONE, *names, config["stem_chs"], stages)


def forward(config: Mapping[str, Any], w: Weights, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) -> logits, or what the head would see, and the tokens behind the last norm."""
    heads, eps = config["num_heads"], config.get("norm_eps", 1e-6)
    activation = ACTIVATIONS[config.get("act_layer") or "gelu"]
    if f"{BACKBONE}stem.conv.weight" in w:
        images = features(images, *_backbone(w), Style())
    x = patches(images, w["patch_embed.proj.weight"], w.get("patch_embed.proj.bias"))
    before = [w[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in w]
    prefix = sum(tokens.shape[1] for tokens in before)
    if config.get("no_embed_class"):
        x = torch.cat([*before, x + w["pos_embed"]], 1)
    else:
        x = torch.cat([*before, x], 1) + w["pos_embed"]
    if config.get("pre_norm"):
        x = norm(x, w, "norm_pre", eps)

    def mlp(x: Tensor, name: str) -> Tensor:
        return dense(activation(dense(x, w, f"{name}.fc1")), w, f"{name}.fc2")

    for index in range(config["depth"]):
        block = f"blocks.{index}."
        q, k, v = dense(norm(x, w, f"{block}norm1", eps), w, f"{block}attn.qkv").chunk(3, -1)
        if config.get("qk_norm"):
            q = norm(q.unflatten(-1, (heads, -1)), w, f"{block}attn.q_norm", eps).flatten(-2)
            k = norm(k.unflatten(-1, (heads, -1)), w, f"{block}attn.k_norm", eps).flatten(-2)
        branch = dense(attend(q, k, v, heads)[0], w, f"{block}attn.proj")
        x = x + branch * w.get(f"{block}ls1.gamma", 1)
        branch = mlp(norm(x, w, f"{block}norm2", eps), f"{block}mlp")
        x = x + branch * w.get(f"{block}ls2.gamma", 1)
    x = x if _norm_behind_pool(config) else norm(x, w, "norm", eps)
    pool = config.get("global_pool", "token")
    if pool == "map":
        q = dense(w["attn_pool.latent"], w, "attn_pool.q").expand(len(x), -1, -1)
        k, v = dense(x, w, "attn_pool.kv").chunk(2, -1)
        pooled = dense(attend(q, k, v, heads)[0], w, "attn_pool.proj")
        pooled = (pooled + mlp(norm(pooled, w, "attn_pool.norm", eps), "attn_pool.mlp"))[:, 0]
    else:
        pooled = x[:, 0] if pool == "token" else x[:, prefix:].mean(1)
    pooled = norm(pooled, w, "fc_norm", eps) if _norm_behind_pool(config) else pooled
    return dense(pooled, w, "head") if config["num_classes"] else pooled, x


def _norm_behind_pool(config: Mapping[str, Any]) -> bool:
    chosen = config.get("fc_norm")
    return config.get("global_pool", "token") == "avg" if chosen is None else chosen


def _backbone(w: Weights) -> tuple[Conv, list[list[Unit]]]:
    def conv(conv: str, norm: str) -> Conv:
        return Conv(
            *(w[f"{BACKBONE}{name}"] for name in (f"{conv}.weight", f"{norm}.weight", f"{norm}.bias"))
        )

    stages: list[list[Unit]] = []
    while f"{BACKBONE}stages.{len(stages)}.blocks.0.conv1.weight" in w:
        units: list[Unit] = []
        while f"{BACKBONE}{(unit := f'stages.{len(stages)}.blocks.{len(units)}.')}conv1.weight" in w:
            first, second, third = (conv(f"{unit}conv{n}", f"{unit}norm{n}") for n in (1, 2, 3))
            shortcut = None if units else conv(f"{unit}downsample.conv", f"{unit}downsample.norm")
            units.append(Unit((first, second, third), shortcut))
        stages.append(units)
    return conv("stem.conv", "stem.norm"), stages


def from_google(config: Mapping[str, Any], w: Weights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Google's model without its head as timm takes it over: with exact GELU."""
    transformer, found = config["transformer"], {}

    def norm(ours: str, theirs: str) -> None:
        found.update({f"{ours}.weight": w[f"{theirs}/scale"], f"{ours}.bias": w[f"{theirs}/bias"]})

    def dense(ours: str, theirs: str) -> None:
        found.update({f"{ours}.weight": w[f"{theirs}/kernel"].T, f"{ours}.bias": w[f"{theirs}/bias"]})

    found["cls_token"], found["pos_embed"] = w["cls"], w[google.POSITIONS]
    found["patch_embed.proj.weight"] = w["embedding/kernel"].permute(3, 2, 0, 1)
    found["patch_embed.proj.bias"] = w["embedding/bias"]
    norm("norm", "Transformer/encoder_norm")
    for index in range(transformer["num_layers"]):
        block, layer = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        parts = [f"{layer}{google.ATTENTION}/{name}" for name in ("query", "key", "value")]
        found[f"{block}attn.qkv.weight"] = torch.cat([w[f"{part}/kernel"].flatten(1).T for part in parts])
        found[f"{block}attn.qkv.bias"] = torch.cat([w[f"{part}/bias"].flatten() for part in parts])
        out = f"{layer}{google.ATTENTION}/out"
        found[f"{block}attn.proj.weight"] = w[f"{out}/kernel"].flatten(0, 1).T
        found[f"{block}attn.proj.bias"] = w[f"{out}/bias"]
        norm(f"{block}norm1", f"{layer}LayerNorm_0")
        norm(f"{block}norm2", f"{layer}LayerNorm_2")
        dense(f"{block}mlp.fc1", f"{layer}MlpBlock_3/Dense_0")
        dense(f"{block}mlp.fc2", f"{layer}MlpBlock_3/Dense_1")
    if config.get("resnet"):
        _convs_from_google(config["resnet"]["num_layers"], w, found)
    sizes = {"embed_dim": config["hidden_size"], "depth": transformer["num_layers"], "num_classes": 0}
    return sizes | {"num_heads": transformer["num_heads"]}, found


def _convs_from_google(depths: list[int], w: Weights, found: dict[str, Tensor]) -> None:
    def add(conv: Conv, kernel: str, norm: str) -> None:
        found[f"{BACKBONE}{kernel}.weight"] = conv.kernel
        found[f"{BACKBONE}{norm}.weight"], found[f"{BACKBONE}{norm}.bias"] = conv.scale, conv.shift

    root, stages = google.backbone(depths, w)
    add(root, "stem.conv", "stem.norm")
    for stage, units in enumerate(stages):
        for index, unit in enumerate(units):
            name = f"stages.{stage}.blocks.{index}."
            for number, conv in enumerate(unit.convs, 1):
                add(conv, f"{name}conv{number}", f"{name}norm{number}")
            if unit.shortcut is not None:
                add(unit.shortcut, f"{name}downsample.conv", f"{name}downsample.norm")
