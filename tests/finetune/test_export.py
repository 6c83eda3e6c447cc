"""Exports are read again before they have their name: classes, weights and preprocessing come back."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import write_weights

from data_tools.errors import UserError
from finetune import export
from finetune.export import export_folder, export_safetensors
from finetune.formats import folder
from finetune.source import open_source


@pytest.mark.parametrize("program", ["hf", "timm"])
@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["blue", "green", "red"], ["blue", "green", "red"]),
        (["blue"], ["blue", "LABEL_1", "LABEL_2"]),
        (["crane", "crane", "crane"], ["crane", "crane", "crane"]),
    ],
)
def test_every_output_has_a_name_and_equal_names_stay(
    program: str, classes: list[str], expected: list[str], tmp_path: Path
) -> None:
    file = write_weights(tmp_path / "model.safetensors", classes)
    export_folder(str(file), str(tmp_path / "out"), program)
    source = open_source(str(tmp_path / "out"))
    assert source.facts["classes"] == expected
    assert source.facts["num_classes"] == 3


def test_nobody_named_the_classes(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "model.safetensors", None)
    export_folder(str(file), str(tmp_path / "hf"), "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    export_folder(str(file), str(tmp_path / "timm"), "timm")
    assert open_source(str(tmp_path / "timm")).facts["classes"] is None


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        (["a", "b", "a"], {"a (0)": 0, "b": 1, "a (2)": 2}),
        (["a", "a (0)", "a"], {"a (0) (0)": 0, "a (0)": 1, "a (2)": 2}),
    ],
)
def test_no_class_is_lost_in_the_map_from_names(
    classes: list[str], ids: dict[str, int], tmp_path: Path
) -> None:
    export_folder(str(write_weights(tmp_path / "model.safetensors", classes)), str(tmp_path / "hf"), "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["label2id"] == ids
    assert list(config["id2label"].values()) == classes


@pytest.mark.parametrize("program", ["hf", "timm"])
def test_more_names_than_outputs_are_refused(program: str, tmp_path: Path) -> None:
    file = write_weights(tmp_path / "model.safetensors", list("abcd"))
    with pytest.raises(UserError, match="it names 4 classes, but has 3") as caught:
        export_folder(str(file), str(tmp_path / "out"), program)
    assert caught.value.exit_code == 3
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [({"0": "a", "1": "b"}, r"shape \[3, 24\]"), ({"1": "a", "2": "b", "3": "c"}, "from 0 to 2")],
)
def test_id_maps_that_do_not_fit_the_outputs_are_refused(
    labels: dict[str, str], says: str, tmp_path: Path
) -> None:
    export_folder(str(write_weights(tmp_path / "model.safetensors", None)), str(tmp_path / "hf"), "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    with pytest.raises(UserError, match=says):
        open_source(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("id2label", {"0": "only one"}, "shape"),
        ("id2label", {"0": "red", "1": "green", "2": "blue"}, "names of its classes"),
        ("hidden_size", 48, "48"),
        ("num_hidden_layers", 1, "hold"),
    ],
)
def test_a_folder_that_does_not_read_as_the_model_is_not_kept(
    key: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_weights(tmp_path / "model.safetensors", ["blue", "green", "red"])
    write = folder.hf_config
    monkeypatch.setattr(folder, "hf_config", lambda *given: write(*given) | {key: value})
    with pytest.raises(UserError, match=f"written for hf is not the same model.*{says}") as caught:
        export_folder(str(file), str(tmp_path / "out"), "hf")
    assert caught.value.exit_code == 3
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("damage", ["value", "fact"])
def test_a_file_that_does_not_read_as_the_model_is_not_kept(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_weights(tmp_path / "model.safetensors", ["blue", "green", "red"])
    write = export.write_weights

    def otherwise(target: Path, shapes: Any, read: Any, facts: Any) -> None:
        if damage == "value":
            write(target, shapes, lambda name: read(name) + (name == "head.bias"), facts)
        else:
            write(target, shapes, read, facts | {"num_classes": 4})

    monkeypatch.setattr(export, "write_weights", otherwise)
    with pytest.raises(UserError, match="not the same model"):
        export_safetensors(str(file), str(tmp_path / "out.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("classes", [["crane", "crane", "red"], ["blue"], None])
def test_transformers_loads_what_is_exported(classes: list[str] | None, tmp_path: Path) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    from transformers import ViTForImageClassification  # type: ignore[import-not-found]

    file = write_weights(tmp_path / "model.safetensors", classes)
    export_folder(str(file), str(tmp_path / "hf"), "hf")
    model = ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = open_source(str(file)).load(torch.device("cpu"))(images)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)
    assert model.config.num_labels == 3
