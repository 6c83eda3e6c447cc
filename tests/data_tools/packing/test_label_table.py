"""The table of labels in docs/data.md: each row is packed, and must become and say what the row says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jobs import ROOT
from sample_files import picture

from data_tools import __main__ as cli
from data_tools.shards.shard_set import ShardSet


def table() -> list[tuple[str, ...]]:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    lines = (
        text.partition("| labels | options | classes | pack says |\n")[2].split("\n\n")[0].splitlines()[1:]
    )
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def test_the_table_has_its_rows() -> None:
    assert len(table()) > 10 and all(len(row) == 4 for row in table())


@pytest.mark.parametrize(("labels", "options", "classes", "says"), table())
def test_a_row_is_true(labels: str, options: str, classes: str, says: str, tmp_path: Path, capsys) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    source.mkdir()
    lines = ["file,label"]
    for number, label in enumerate(quoted(labels)):
        (source / f"{number}.jpg").write_bytes(picture(number))
        lines.append(f"{number}.jpg,{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    given = [word for option in quoted(options) for word in option.split()]
    code = cli.main(["pack", str(source), str(out), "--csv", str(tmp_path / "labels.csv"), *given])
    said = capsys.readouterr().err
    assert all(part in said for part in quoted(says)), said
    if classes == "refused":
        assert code in (2, 3) and not out.exists()
    else:
        assert code == 0 and json.loads((out / "classes.json").read_bytes()) == quoted(classes)
        assert ShardSet.open(out).numeric == (classes == "numbers")
