"""Batches for the model, and one thread."""

from collections.abc import Callable

import pytest
import torch

from data_tools.tile_batch import TileBatch


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tile_batch() -> Callable[..., TileBatch]:
    """Random images with the given rows and columns of tiles."""

    def build(*grid: tuple[int, int]) -> TileBatch:
        count = torch.tensor(grid).prod(1)
        images = [
            torch.randint(
                0,
                256,
                (int(n), 3, 32, 32),
                dtype=torch.uint8,
                generator=torch.Generator().manual_seed(rows * 10 + columns),
            )
            for n, (rows, columns) in zip(count, grid, strict=True)
        ]
        return TileBatch(
            tiles=torch.cat(images),
            tiles_per_image=count,
            grid=torch.tensor(grid),
            labels=torch.zeros(len(grid), dtype=torch.int64),
            weight=torch.ones(len(grid)),
            position=torch.arange(len(grid)),
            sample=torch.arange(len(grid)),
        )

    return build
