"""--help and docs/configuration.md say what the schema says.

python tests/pretrain/config/test_reference.py     writes the table of docs/configuration.md anew
"""

from __future__ import annotations

from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.config.keys import known_keys
from pretrain.config.reference import help_text, settings, table
from pretrain.config.schema import Config

PAGE = Path(__file__).resolve().parents[3] / "docs/configuration.md"


def test_the_page_has_the_settings_of_the_schema() -> None:
    assert table(FinetuneConfig) in PAGE.read_text(encoding="utf-8"), (
        f"PYTHONPATH=. python {__file__} writes it anew"
    )


def test_help_has_every_setting_with_its_range() -> None:
    text = help_text(Config)
    assert "  optim.lr=0.001  (number, above 0 and at most 1000)" in text
    assert "  engine.kind=fsdp  (one of fsdp, ddp, deepspeed)" in text
    assert "  data.augment.flip=false  (true or false)" in text
    groups = {key.rpartition(".")[0] for key in known_keys(Config)}
    assert {one.key for one in settings(Config)} == known_keys(Config).keys() - groups


def test_a_meaning_is_the_comment_of_the_schema() -> None:
    meanings = {one.key: one.meaning for one in settings(FinetuneConfig)}
    assert meanings["run.name"] == "empty: the recipe's name"
    assert meanings["init_weights"].startswith("auto: averaged") and meanings["optim.lr"] == ""


if __name__ == "__main__":
    above = PAGE.read_text(encoding="utf-8").split("| key |")[0]
    PAGE.write_text(above + table(FinetuneConfig), encoding="utf-8")
