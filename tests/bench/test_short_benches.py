"""A short form of the model's benchmarks; the long ones are run by hand, by the command in their heads."""

from __future__ import annotations

import pytest
from bench import gpu_step, packing


def test_packing_prints_its_table(capsys) -> None:
    ratios = packing.main(["--quick"])
    assert set(ratios) == {"1 tile", "2 tiles", "4 tiles", "1 to 4"}
    assert "padded MB" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_of_each_kind_is_measured() -> None:
    kinds = ["agreement", "copy", "l16, batch 256, fsdp, eager", "b16, batch 400", "ddp", "selective"]
    rows = gpu_step.main(["--quick", "--rows", *kinds])
    assert [row for row in rows if "error" in row] == []
    assert rows[0]["agrees"] and rows[1]["TB_per_s"] > 0
    steps = rows[2:]
    assert len(steps) == 5
    assert all(row["images_per_s"] > 0 and row["tflops"] > 0 for row in steps)
    assert {row["graphs"] for row in steps if "compiled" in row["row"]} == {1}
