from __future__ import annotations

import numpy as np
from PIL import Image
from sample_files import picture, write_tar

from data_tools import __main__ as cli
from data_tools.shards.index import build_index


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_preview_shows_tiles_borders_and_bad_images(tmp_path, capsys) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    red = Image.new("RGB", (400, 200), (200, 0, 0))
    red.save(tmp_path / "red.png")
    members = [("a.png", (tmp_path / "red.png").read_bytes()), ("a.cls", b"0")]
    write_tar(folder / "x.tar", members)
    (folder / "classes.json").write_text('["日本 a very long class name that does not fit into its cell"]')
    build_index(folder)
    out = tmp_path / "out.png"
    assert cli.main(["preview", str(folder), str(out), "--tile-size", "100", "--max-tiles", "2"]) == 0
    assert capsys.readouterr().out == f"1 image -> {out}\n"
    sheet = pixels(out)
    is_red = (abs(sheet - (200, 0, 0)) < 12).all(axis=2)
    rows, columns = np.flatnonzero(is_red.any(axis=1)), np.flatnonzero(is_red.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(width / height - 2) < 0.1  # the whole canvas of 1 x 2 tiles
    middle = (columns[0] + columns[-1]) // 2
    assert sheet[rows[len(rows) // 2], middle - 2 : middle + 3, 2].max() > 100  # the tiles' border
    again = tmp_path / "again.PNG"
    assert cli.main(["preview", str(folder), str(again), "--tile-size", "100", "--max-tiles", "2"]) == 0
    assert again.read_bytes() == out.read_bytes()

    write_tar(folder / "x.tar", [*members, ("b.jpg", picture(1)[:300]), ("b.cls", b"0")])
    build_index(folder)
    assert cli.main(["preview", str(folder), str(out), "--images", "9"]) == 0
    assert capsys.readouterr().out.endswith(f"2 images -> {out}\n")
    assert (abs(pixels(out) - (192, 0, 0)) < 12).all(axis=2).any()  # the reason, in dark red


def test_the_name_must_be_that_of_a_png(make_shards, tmp_path, capsys) -> None:
    folder = make_shards([2]).folder
    assert cli.main(["preview", str(folder), str(tmp_path / "x.jpg")]) == 2
    assert "does not end in .png" in capsys.readouterr().err and not (tmp_path / "x.jpg").exists()
