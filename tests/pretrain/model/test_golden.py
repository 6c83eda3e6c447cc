"""The numbers of torchtune, transformers, timm, Google's code and scipy, array by array.

`python tests/bench/golden_table.py FOLDER` prints the differences. The peers' own numbers are no part of the
repository: our models are held against tests/references everywhere, and both against the peers' numbers where
these are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from golden import FILES, NAMES, Comparison, compare, compare_arrays, compare_canvases, read, under
from references import google, hf, torchtune
from references.computed import canvases, computed
from references.made import made, made_canvases

# Where a file has its weights, and the names and shapes that the references give them.
WEIGHTS: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, tuple[int, ...]]]]] = {
    "tt_single_tile": (("weights/",), torchtune.shapes),
    "tt_tiled": (("weights/",), torchtune.shapes),
    "tt_append_cls_proj": (("weights/",), torchtune.shapes),
    "tt_state_dict_interp": (("before/",), lambda config: torchtune.shapes(config["source"])),
    "hf_vit": (("weights/", "weights_base/"), hf.shapes),
    "hf_vit_hybrid": (("weights/", "weights_base/"), hf.shapes),
    "google_vit_npz": (("npz/",), google.shapes),
    "google_hybrid_npz": (("npz/",), google.shapes),
}


def check(found: Iterable[Comparison]) -> None:
    comparisons = list(found)
    assert len(comparisons) >= 4
    for comparison in comparisons:
        comparison.check()


@pytest.mark.parametrize("name", [*FILES, "timm"])
def test_numbers_are_those_of_the_references(name: str) -> None:
    check(compare_arrays(name, made(name)))


def test_canvases_are_those_of_the_references() -> None:
    check(compare_canvases(made_canvases()))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_peers(shared: Callable[[str], Path], name: str) -> None:
    check(compare(shared("golden"), name))


def test_the_references_compute_what_the_peers_do(shared: Callable[[str], Path]) -> None:
    for name in FILES:
        data = read(shared("golden"), name)
        found = computed(name, data)
        outputs = {key for key in data if key.startswith(("outputs", "ref64/", "stages/", "after/"))}
        assert outputs <= found.keys() <= data.keys(), name
        for key, ours in found.items():
            atol, rtol = (1e-12, 0.0) if key.startswith("ref64/") else (2e-5, 1e-5)
            np.testing.assert_allclose(ours, data[key], atol=atol, rtol=rtol, err_msg=f"{name} {key}")


def test_the_references_know_the_peers_names(shared: Callable[[str], Path]) -> None:
    for name, (folders, shapes) in WEIGHTS.items():
        data = read(shared("golden"), name)
        theirs = {key.removeprefix("vit."): value.shape for key, value in under(data, *folders).items()}
        ours = shapes(json.loads(str(data["config_json"])))
        assert {key.removeprefix("vit."): shape for key, shape in ours.items()} == theirs, name


def test_the_references_choose_the_peers_canvases(shared: Callable[[str], Path]) -> None:
    data = json.loads((shared("golden") / "canvas_table.json").read_text())
    found = json.loads(json.dumps(canvases(data)))
    assert found["find_supported_resolutions"] == data["find_supported_resolutions"]
    assert found["custom_resolutions"] == data["custom_resolutions"]
    for ours, theirs in zip(found["tables"], data["tables"], strict=True):
        for row, peers in zip(ours["rows"], theirs["rows"], strict=True):
            for mode in ("no_max_canvas", "max_canvas"):
                assert row[mode].items() <= peers[mode].items(), row["image"]
