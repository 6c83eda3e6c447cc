"""Forward time and memory of packed tiles against padded and masked ones, as they grow with the real tiles.

    python tests/bench/packing.py [--name vit_ti16] [--tile-size 224] [--images 4] [--rounds 5] [--quick]

Both sides have the same model and weights, and their results are compared first. The padded side has every
image filled up to four tiles and keeps attention off the filling by a mask, which is what padding frameworks
do at best. Batches: all images of 1, 2 or 4 tiles, and a mix of 1, 2, 3 and 4. Times are medians over rounds
in shuffled order, without gradients, in bf16 on CUDA and fp32 elsewhere, where they are the CPU's own time;
memory is what a forward keeps for the backward on the CPU, and the peak of the allocator on CUDA. Ratio:
padded / packed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from pretrain.config.schema import ModelConfig
from pretrain.model import Classifier, VisionTransformer
from pretrain.model.init import initialize
from pretrain.model.packing import Packing

MOST = 4
BATCHES = {"1 tile": (1,), "2 tiles": (2,), "4 tiles": (4,), "1 to 4": (1, 2, 3, 4)}
TARGET = 1.3  # of the mix


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the table; returns the ratio of the times of each batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="vit_ti16")
    parser.add_argument("--tile-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=4, help="of a batch, a multiple of 4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a model of two layers on small tiles")
    given = parser.parse_args(arguments)
    config = ModelConfig(name=given.name, pool="mean")
    if given.quick:
        config = ModelConfig(
            name="vit_ti16", pool="mean", embed_dim=96, num_heads=3, mlp_dim=384, num_layers=2
        )
        given.tile_size, given.rounds = 64, 3
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = {"tile_size": given.tile_size, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = Classifier(config, max_tiles=MOST, num_classes=1000, **pixels)
    initialize(model, seed=0)
    encoder = model.encoder.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()

    sides = {}
    for title, counts in BATCHES.items():
        tiles_per_image = torch.tensor(counts * (given.images // len(counts)))
        sides[title] = sides_of(encoder, tiles_per_image, given.tile_size, device)
        same(*sides[title], tiles_per_image)
    seconds: dict[tuple[str, int], list[float]] = {(title, side): [] for title in sides for side in (0, 1)}
    runs = list(seconds) * given.rounds
    random.Random(0).shuffle(runs)
    for title, side in runs:
        seconds[title, side].append(timed(sides[title][side], device))
    print(f"{config.name}, tiles of {given.tile_size}, {given.images} images, {device.type}")
    titles = ("packed s", "padded s", "ratio", "packed MB", "padded MB", "ratio")
    print("tiles".ljust(9) + "".join(map(str.rjust, titles, (10, 10, 7, 11, 11, 7))))
    ratios = {}
    for title, both in sides.items():
        packed, padded = (statistics.median(seconds[title, side]) for side in (0, 1))
        small, large = (memory(side, device) / 1e6 for side in both)
        ratios[title] = padded / packed
        print(
            f"{title:9}{packed:10.3f}{padded:10.3f}{padded / packed:7.2f}{small:11.0f}{large:11.0f}"
            f"{large / small:7.2f}"
        )
    print(f"the mix: {ratios['1 to 4']:.2f} times as fast as padded (at least {TARGET} is wanted)")
    return ratios


def sides_of(
    encoder: VisionTransformer, tiles_per_image: Tensor, tile_size: int, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The forward of the packed and of the padded batch."""
    images, total = len(tiles_per_image), int(tiles_per_image.sum())
    dtype = encoder.ln_post.weight.dtype
    tiles = torch.randn(total, 3, tile_size, tile_size, device=device, dtype=dtype)
    real = (torch.arange(MOST) < tiles_per_image[:, None]).flatten().to(device)
    filled = tiles.new_zeros(images * MOST, *tiles.shape[1:])
    filled[real] = tiles
    mask = real.view(images, 1, 1, MOST).repeat_interleave(encoder.tokens_per_tile, -1)

    def masked(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        q, k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    def packed() -> Tensor:
        grid = torch.stack([torch.ones_like(tiles_per_image), tiles_per_image], 1)
        packing = encoder.packing(grid, device)
        return packing.unpack(encoder.encode(packing.pack(tiles), packing)[0])

    def padded() -> Tensor:
        packing = encoder.packing(torch.tensor([(1, MOST)] * images), device)
        return encoder.encode(filled, replace(packing, watch=masked))[0]

    return packed, padded


@torch.no_grad()
def same(packed: Callable[[], Tensor], padded: Callable[[], Tensor], tiles_per_image: Tensor) -> None:
    """Both sides give the same tokens for the real tiles."""
    ours = packed()
    real = (torch.arange(MOST) < tiles_per_image[:, None]).flatten().to(ours.device)
    tolerance = 2e-2 if ours.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(ours, padded()[real], atol=tolerance, rtol=tolerance)


@torch.no_grad()
def timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds; on the CPU those that it worked, so that a busy machine does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    began = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def memory(run: Callable[[], Tensor], device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = run()
    del held
    return sum(kept.values())


if __name__ == "__main__":
    main()
