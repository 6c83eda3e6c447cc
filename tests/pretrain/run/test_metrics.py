from __future__ import annotations

import itertools

from pretrain.run.metrics import console_line


def test_a_line_fits_a_terminal_and_keeps_what_matters() -> None:
    cases = itertools.product(
        (7, 123_456),
        (None, 2.8996, 12345.6),
        (None, 0.957, 1e5),
        (3.0, 1_234_567.0),
        (None, 0.512),
        (0, 12_345),
    )
    for step, loss, norm, speed, mfu, bad in cases:
        row = {
            "step": step,
            "loss": loss,
            "grad_norm": norm,
            "lr": 1e-3,
            "images_per_s": speed,
            "data_wait": 0.123,
            "mfu": mfu,
            "nonfinite": bad // 100,
            "bad_samples": bad,
        }
        line = console_line(row, 9 * step, 123_456.0)
        assert len(line) <= 80, line
        shown = "not finite" if loss is None else f"{loss:.4f}"
        assert line.startswith(f"step {step}/{9 * step}  loss {shown}  ")
        assert f"  img/s {speed:.0f}" in line
        assert line.endswith("  eta 34:17:36") or bad
        assert (f"  left out {bad // 100}  bad {bad}" in line) == bool(bad)


def test_a_short_run_shows_all() -> None:
    row = {"step": 20, "loss": 2.8996, "grad_norm": 0.957, "lr": 1e-3, "images_per_s": 7375.4}
    rest = {"data_wait": 0.004, "mfu": None, "nonfinite": 0, "bad_samples": 0}
    wanted = "step 20/20  loss 2.8996  grad 0.96  lr 1.0e-3  img/s 7375  wait 0%  eta 0:00:05"
    assert console_line(row | rest, 20, 5.5) == wanted
