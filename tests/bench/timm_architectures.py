"""Writes the table of timm's Vision Transformers from timm's own entry points, and the page about it.

    python tests/bench/timm_architectures.py            # the table, where timm is installed; then the page
    python tests/bench/timm_architectures.py --page     # only the page: docs/peers.md from the table

Every entry point of timm is called, and what it gives to the constructor of the model is written down.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from finetune.formats import timm_arguments  # noqa: E402
from finetune.formats.timm_arguments import DEFAULTS  # noqa: E402
from finetune.formats.timm_table import ARCHITECTURES, TABLE  # noqa: E402

MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit")
PREPROCESSING = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
PAGE = ROOT / "docs" / "peers.md"
BEGIN, END = "<!-- timm's architectures: made by tests/bench/timm_architectures.py -->", "<!-- end -->"


class Called(Exception):
    """Raised instead of building a model, with the class and the arguments that timm would build."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of timm's Vision Transformers.")
    parser.add_argument("--page", action="store_true", help="only docs/peers.md, from the table as it is")
    page = ARCHITECTURES
    if not parser.parse_args().page:
        table = read_timm()
        TABLE.write_text(as_text(table))
        page = table["architectures"]
    PAGE.write_text(with_table(PAGE.read_text(), page))


def with_table(page: str, architectures: dict[str, Any]) -> str:
    """`page` with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(architectures)}\n{END}{rest.split(END)[1]}"


def markdown(architectures: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of docs/peers.md: a row for each architecture."""
    lines = [
        "| architecture | patch | image | width | depth | heads | pool | what else | preprocessing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in architectures.items():
        arguments = DEFAULTS | row["arguments"]
        sizes = [arguments[key] for key in ("embed_dim", "depth", "num_heads", "global_pool")]
        patch = "" if "backbone" in arguments else arguments["patch_size"]
        known = row["preprocessing"]
        cells = [f"`{name}`", patch, known["input_size"][-1], *sizes, _rest(row["arguments"]), _pixels(known)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _rest(arguments: Mapping[str, Any]) -> str:
    """What else an architecture has, or why it is refused."""
    try:
        timm_arguments.check(arguments)
    except ValueError as error:
        return f"**refused**: {error}"
    shown = (*DEFAULTS, "norm_eps")
    hidden = ("patch_size", "img_size", "embed_dim", "depth", "num_heads", "global_pool")
    parts = [f"{key}={arguments[key]}" for key in shown if key in arguments and key not in hidden]
    if resnet := arguments.get("backbone"):
        parts.insert(0, f"ResNetV2 {'-'.join(map(str, resnet['layers'])) or 'stem'}")
    return ", ".join(parts)


def _pixels(known: Mapping[str, Any]) -> str:
    mean, std = (" ".join(f"{x:.3g}" for x in dict.fromkeys(known[key])) for key in ("mean", "std"))
    crop = f"{known['crop_mode']} {known['crop_pct']:g}"
    return f"{crop}, {known['interpolation']}, mean {mean}, std {std}"


def as_text(table: dict[str, Any]) -> str:
    """The table as JSON, with a line for each architecture."""
    parts = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_timm() -> dict[str, Any]:
    """What the entry points of the installed timm say: version, architectures, names of earlier versions."""
    from references.timm_itself import timm_or_skip

    timm = timm_or_skip()
    from timm.models import _registry as registry  # type: ignore[import-not-found]

    architectures = {}
    for module in MODULES:
        for name in sorted(registry._module_to_models[module] - registry._deprecated_models.keys()):
            architectures[name] = row(name, registry)
    known = {
        old: new.partition(".")[0]
        for old, new in sorted(registry._deprecated_models.items())
        if new.partition(".")[0] in architectures
    }
    return {"timm": timm.__version__, "architectures": architectures, "earlier_names": known}


def row(name: str, registry: Any) -> dict[str, Any]:
    """What timm's entry point `name` gives to the model, and the preprocessing of its first weights."""
    import torch
    from timm.models import deit, vision_transformer, vision_transformer_hybrid

    def stop(cls: type, variant: str, pretrained: bool = False, **given: Any) -> None:
        raise Called(cls, given)

    modules = (deit, vision_transformer, vision_transformer_hybrid)
    build = vision_transformer.build_model_with_cfg
    for module in modules:
        module.build_model_with_cfg = stop
    try:
        with torch.device("meta"):
            registry._model_entrypoints[name]()
    except Called as called:
        cls, given = called.args
    finally:
        for module in modules:
            module.build_model_with_cfg = build
    usual = inspect.signature(vision_transformer.VisionTransformer.__init__).parameters
    arguments: dict[str, Any] = {} if cls.__name__ == "VisionTransformer" else {"model_class": cls.__name__}
    for key, value in given.items():
        if key in usual and value != usual[key].default:
            arguments |= as_data(key, value)
    chosen = registry._model_default_cfgs[name].default
    return {"arguments": arguments, "preprocessing": {key: getattr(chosen, key) for key in PREPROCESSING}}


def as_data(key: str, value: Any) -> dict[str, Any]:
    """An argument as JSON can hold it: classes become their names, an epsilon of the norms `norm_eps`."""
    keywords: dict[str, Any] = {}
    if isinstance(value, functools.partial):
        keywords, value = value.keywords, value.func
    if key == "embed_layer":
        return {"backbone": backbone(keywords)}
    if key == "norm_layer" and "eps" in keywords and value.__name__ == "LayerNorm":
        return {"norm_eps": keywords["eps"]}
    return {key: value.__name__ if isinstance(value, type) else value}


def backbone(keywords: dict[str, Any]) -> Any:
    """The arguments of a hybrid's ResNetV2 with padding SAME, or what it has instead."""
    from timm.layers import StdConv2dSame  # type: ignore[import-not-found]
    from torch import nn

    found = keywords["backbone"]
    convolutions = [module for module in found.modules() if isinstance(module, nn.Conv2d)]
    if any(type(module) is not StdConv2dSame for module in convolutions):
        return "BatchNorm"
    stages = list(getattr(found, "stages", []))
    return {
        "layers": [len(stage.blocks) for stage in stages],
        "channels": [stage.blocks[-1].conv3.out_channels for stage in stages],
        "stem_chs": convolutions[0].out_channels,
    }


if __name__ == "__main__":
    main()
