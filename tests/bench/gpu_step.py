"""The speed of a training step on one GPU, in the order in which the answers matter.

    python tests/bench/gpu_step.py [--seconds 600] [--rows PART ...] [--out FILE] [--quick]

One JSON line a measurement, until the time is up: how fast the machine copies and multiplies matrices of our
shapes; attention by backend; then whole steps of the real engine (forward, backward, clipping, AdamW) on one
process: images/s, op-exact TFLOP/s (three times the forward, nothing recomputed), MFU against the maker's
dense bf16 peak, and the peak of the memory. B/16, L/16 and g/14 are measured at 224 pixels with one tile and
with 1 to 4 tiles mixed. On CUDA it first holds varlen_attn against one dense call for each length, to 2e-2 in
bf16, and ends with code 1 if they differ. --rows: only rows whose name contains one of the PARTs. --quick:
tiny models of the same kinds, few steps, no C++ compiler; the only sensible form on a CPU, where its figures
say nothing about a GPU.

It has run on one H200 with torch 2.11 and CUDA 13.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2]))

from data_tools.tile_batch import TileBatch
from pretrain.config.schema import Config, DataConfig, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from pretrain.engine import blocks
from pretrain.engine.kinds import ENGINES
from pretrain.model.attention import attention
from pretrain.model.build import build_model
from pretrain.model.flops import training_flops
from pretrain.model.grouped import grouped_attention
from pretrain.model.init import random_values
from pretrain.model.packing import Packing
from pretrain.objective import build_objective
from pretrain.run.metrics import peak_flops
from pretrain.run.processes import World, start

CLASSES = 1000
MIXED = (1, 2, 3, 4)


@dataclass(frozen=True)
class Step:
    """A whole training step. tiles: of the images of a batch, in turn; model: fields beside the name."""

    name: str
    batch: int
    tiles: tuple[int, ...] = (1,)
    kind: str = "fsdp"  # on one process: bf16 parameters and residual; ddp: autocast
    compile: bool = True
    checkpointing: str = "none"
    model: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.name, f"batch {self.batch}", self.kind, "compiled" if self.compile else "eager"]
        words += ["1 to 4 tiles"] * (len(self.tiles) > 1) + [f"{k}={v}" for k, v in self.model.items()]
        return ", ".join(words + [f"checkpointing {self.checkpointing}"] * (self.checkpointing != "none"))


MEAN = {"pool": "mean"}
SCALED = {"layer_scale": 1e-4, "drop_path": 0.1}
STEPS = (
    Step("vit_l16", 256, compile=False),
    Step("vit_l16", 256),
    Step("vit_h14", 256),
    Step("vit_h14", 256, model=MEAN),
    Step("vit_g14", 192, model=MEAN),
    Step("vit_b16", 1024),
    Step("vit_b16", 400, MIXED),
    Step("vit_l16", 132, MIXED),
    Step("vit_g14", 64, MIXED, model=MEAN),
    Step("vit_l16", 256, compile=False, model=SCALED),
    Step("vit_l16", 256, model=SCALED),
    *(Step("vit_l16", batch) for batch in (32, 64, 128, 512)),
    Step("vit_l16", 256, kind="ddp"),
    Step("vit_l16", 512, checkpointing="selective"),
)
# Width, MLP and heads of L/16 and H/14, and their tokens in a batch of 256.
GEMMS = {"vit_l16": (1024, 4096, 50432), "vit_h14": (1280, 5120, 65536)}
ATTENTION = ((197, 64), (256, 64), (257, 80), (256, 80), (256, 88), (577, 64))  # tokens, width of a head
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="no row is begun after so many")
    parser.add_argument("--rows", nargs="*", default=[""])
    parser.add_argument("--out", help="a file for the rows, as well")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    began, rows = time.monotonic(), []
    opened = not dist.is_initialized()
    world = start(600) if opened else World(0, 1, torch.device("cpu"))
    if given.quick:
        blocks.BACKEND = "aot_eager"
    try:
        for name, measure in plan(world, given.quick):
            if time.monotonic() - began > given.seconds:
                break
            if not any(part in name for part in given.rows):
                continue
            try:
                row = {"row": name} | measure()
            except (torch.OutOfMemoryError, RuntimeError) as error:  # the next row may fit, or be there
                row = {"row": name, "error": str(error).splitlines()[0]}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if given.out:
                with open(given.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            clear(world.device)
    finally:
        if opened:
            dist.destroy_process_group()
    return rows


def plan(world: World, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The rows in order of priority."""
    device = world.device
    yield "agreement of varlen_attn and dense calls", partial(agreement, device, quick)
    yield "copy", partial(copy, device, quick)
    for name, sizes in GEMMS.items():
        yield f"matrix products of {name}", partial(products, device, *((64, 128, 256) if quick else sizes))
    for tokens, width in ATTENTION[: 1 if quick else None]:
        for backend in ("default", *(BACKENDS if device.type == "cuda" else ())):
            yield (
                f"attention {tokens}x{width} {backend}",
                partial(dense, device, tokens, width, backend, quick),
            )
    for step in STEPS:
        yield f"{'tiny ' * quick}step {step}", partial(train, world, step, quick)


def train(world: World, step: Step, quick: bool) -> dict[str, Any]:
    """Median step of 20 after 10, or of 3 after 2."""
    batch, side = step.batch, 224
    model = ModelConfig(name=step.name, head="linear", **step.model)
    if quick:
        batch, side, model.patch_size = 8, 28, 14
        model.embed_dim, model.num_heads, model.mlp_dim, model.num_layers = 32, 2, 64, 2
    config = Config(
        data=DataConfig(tile_size=side, max_tiles=max(step.tiles)),
        model=model,
        optim=OptimConfig(lr=1e-4),
        train=TrainConfig(steps=1, batch_size=batch),
        engine=EngineConfig(
            kind=step.kind,
            precision="bf16",
            compile=step.compile,
            activation_checkpointing=step.checkpointing,
        ),
    )
    with torch.device("meta"):
        built = build_model(config, CLASSES)
    engine = ENGINES[step.kind](config, world, built, random_values(built, seed=0))
    images = batch_of(batch, step.tiles, side, world.device)
    objective = build_objective(config.objective)

    def run() -> None:
        engine.train_micro_batch(images, objective, 0, 0, last=True)
        engine.update(1e-4, 0)

    torch._dynamo.utils.counters.clear()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    seconds, host = timed(run, world.device, *((1, 3) if quick else (9, 20)))
    counts = images.tiles_per_image.tolist()
    flops = sum(training_flops(model, tile_size=side, num_classes=CLASSES, tiles=n) for n in counts)
    peak = peak_flops(world.device)
    return {
        "tokens": len(images.tiles) * built.encoder.tokens_per_tile,
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        "ms": 1e3 * seconds,
        "host_ms": 1e3 * host,
        "first_s": first,
        "images_per_s": batch / seconds,
        "tflops": flops / seconds / 1e12,
        "mfu": flops / seconds / peak if peak else None,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        **state_of(world.device),
    }


def batch_of(images: int, tiles: tuple[int, ...], side: int, device: torch.device) -> TileBatch:
    """Random pixels, as the loader gives them: pinned, in the order of the batch."""
    counts = torch.tensor([tiles[i % len(tiles)] for i in range(images)])
    pixels = torch.randint(0, 256, (int(counts.sum()), 3, side, side), dtype=torch.uint8)
    numbers = torch.arange(images)
    return TileBatch(
        tiles=pixels.pin_memory() if device.type == "cuda" else pixels,
        tiles_per_image=counts,
        grid=torch.stack([torch.ones_like(counts), counts], 1),
        labels=numbers % CLASSES,
        weight=torch.ones(images),
        position=numbers,
        sample=numbers,
    )


def agreement(device: torch.device, quick: bool) -> dict[str, Any]:
    """The greatest differences of results and gradients, between packed attention and dense calls."""
    grid = torch.tensor([(1, n) for n in MIXED] * 2)
    packing = Packing.of(grid, 5 if quick else 257, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads = (int(packing.offsets[-1]), 2 if quick else 16, 64)
    q, k, v, slope = torch.randn(4, *heads, device=device, dtype=dtype).unbind(0)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        ours = attention(*inputs, packing)
        grads = torch.autograd.grad(ours, inputs, slope)
        theirs = grouped_attention(*inputs, packing.host_offsets)
        wanted = torch.autograd.grad(theirs, inputs, slope)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    pairs = [(ours, theirs), *zip(grads, wanted, strict=True)]
    differences = [(a - b).abs().max().item() for a, b in pairs]
    agrees = all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in pairs)
    return {"differences": differences, "tolerance": tolerance, "agrees": agrees}


def copy(device: torch.device, quick: bool) -> dict[str, Any]:
    """Bytes read and written in a second."""
    source = torch.empty(1 << (20 if quick else 32), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds, _ = timed(lambda: target.copy_(source), device, 2, 5)
    return {"TB_per_s": 2 * source.numel() / seconds / 1e12, **state_of(device)}


def products(device: torch.device, width: int, mlp: int, tokens: int) -> dict[str, Any]:
    """TFLOP/s of the four linear layers of a block: forward, gradient of the input, of the weight."""
    found = {}
    shapes = {"qkv": (width, 3 * width), "proj": (width, width), "fc1": (width, mlp), "fc2": (mlp, width)}
    for name, (into, out) in shapes.items():
        x, weight, slope = (
            torch.randn(shape, device=device, dtype=torch.bfloat16)
            for shape in ((tokens, into), (out, into), (tokens, out))
        )
        forms = {
            "forward": lambda x=x, w=weight: F.linear(x, w),
            "input": lambda g=slope, w=weight: g @ w,
            "weight": lambda g=slope, x=x: g.T @ x,
        }
        for form, run in forms.items():
            seconds, _ = timed(run, device, 3, 10)
            found[f"{name} {form}"] = 2 * tokens * into * out / seconds / 1e12
    return {"tflops": found, **state_of(device)}


def dense(device: torch.device, tokens: int, width: int, backend: str, quick: bool) -> dict[str, Any]:
    """Milliseconds of attention forward, and forward and backward, of 4096 heads in all."""
    shape = (2, 2, tokens, width) if quick else (256, 16, tokens, width)
    q, k, v, slope = torch.randn(4, *shape, device=device, dtype=torch.bfloat16).unbind(0)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def both() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, slope)

    with sdpa_kernel(BACKENDS[backend]) if backend in BACKENDS else nullcontext():
        with torch.no_grad():
            forward, _ = timed(lambda: F.scaled_dot_product_attention(*inputs), device, 3, 10)
        total, _ = timed(both, device, 3, 10)
    return {"forward_ms": 1e3 * forward, "both_ms": 1e3 * total, **state_of(device)}


def timed(run: Callable[[], object], device: torch.device, warm: int, times: int) -> tuple[float, float]:
    """Median seconds of the device, and of the host until the call returns."""
    for _ in range(warm):
        run()
    if device.type != "cuda":
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds), statistics.median(seconds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    host = []
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        began = time.perf_counter()
        run()
        event.record()
        host.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    spans = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
    return statistics.median(spans), statistics.median(host)


def state_of(device: torch.device) -> dict[str, Any]:
    """Memory, clock and power, and what computed."""
    if device.type != "cuda":
        return {"device": "cpu"}
    memory = torch.cuda.memory_stats()
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"]
    try:
        clock, power = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(",")[:2]
    except (OSError, subprocess.CalledProcessError, ValueError):
        clock = power = "unknown"
    return {
        "device": torch.cuda.get_device_name(),
        "allocated_GiB": memory["allocated_bytes.all.peak"] / 2**30,
        "reserved_GiB": memory["reserved_bytes.all.peak"] / 2**30,
        "retries": memory["num_alloc_retries"],
        "sm_MHz": clock.strip(),
        "watts": power.strip().partition("\n")[0],
        "cudnn": torch.backends.cudnn.version(),
    }


def clear(device: torch.device) -> None:
    """Nothing of a row is left for the next."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(0 if all(row.get("agrees", True) for row in main()) else 1)
