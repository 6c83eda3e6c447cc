"""Put wrong and strange settings into the recipes of the project: each is refused in one sentence, or trains.

    python tests/drills/settings.py [--mutations 1000] [--trained 1000] [--seed 0]

A mutation changes one or two values or keys, in the recipe or on the command line. It is loaded and checked
as a job does before its processes join. What is accepted trains a tiny model for two steps: its losses are
numbers, or the run says why it ended. Anything else is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import tempfile
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drills.kills import pack
from jobs import ROOT, Data, metrics, run

from data_tools.errors import UserError
from finetune.config import FinetuneConfig
from pretrain.config.batch_split import split_job
from pretrain.config.limits import limit_of
from pretrain.config.loading import load
from pretrain.config.schema import Config
from pretrain.engine.optim import planned_model
from pretrain.inputs import open_inputs
from pretrain.model.variants import resolve

RECIPES = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "cluster"]
TEXTS = (
    *("", "null", "~", "true", "yes", "off", "-1", "0", "1", "2", "3", "7", "0.5", "1.0", "1e-30", "1e30"),
    *(
        ".nan",
        "nan",
        ".inf",
        "-.inf",
        "inf",
        "1000000000",
        "9" * 30,
        "9" * 5000,
        "-9999999999",
        "0x10",
        "1__0",
    ),
    *("0123", "1_000", "12:30:45", "2020-01-01", "1e3", "x #y", "ünïcödé", "🙂", "\u202e", "x" * 5000, " "),
    *(
        "[]",
        "[1]",
        "[1, 2]",
        "[0.5, 0.9]",
        "[0.9, 0.1]",
        "[[1, 2]]",
        "[[1, 1]]",
        "[.nan, 1]",
        "[a, b]",
        "[[]]",
    ),
    *("{}", "{a: 1}", "{shards: x}", "[{shards: x, weight: -1}]", "[{shards: x, weight: .nan}]", "[null]"),
    *(
        "a\nb",
        "a\rb",
        "\x1b[31m",
        "\0",
        "\x85",
        "..",
        ".",
        "../x",
        "/abs",
        "${x}",
        "${oc.env:HOME}",
        "${",
        "${}",
    ),
    *(
        "*x",
        "&x",
        "!x",
        "!!python/name:os.system",
        "'",
        '"',
        "[" * 60,
        "{",
        "]",
        "%",
        "@x",
        "`",
        "- x",
        "? x",
    ),
    *("&a [*a]", "<<", "nan:steps=1", "slow:seconds=-1", "kill:rank=5", "kill:step=x", "[encoder]", "[x.y]"),
)
SIZES = {"tile_size": 16, "batch_size": 8, "workers": 4, "embed_dim": 64, "num_layers": 4, "mlp_dim": 256}
MANY = 2_000_000  # parameters


def tiny(recipe: Path, data: Data) -> dict[str, Any]:
    """The recipe on a small data set, with a model that trains two steps in a moment."""
    found = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    found.setdefault("data", {}).update(
        train=str(data.train), val=str(data.val), tile_size=16, max_tiles=1, workers=1, eval_resize=0
    )
    found["model"].update(patch_size=8, embed_dim=16, num_layers=1, num_heads=2, mlp_dim=16)
    if "hybrid" in str(found["model"].get("name")):
        found["model"].update(patch_size=1, backbone={"depths": [1], "stem": 32})
    found["train"] = {"steps": 2, "batch_size": 4, "log_every": 1}
    found.setdefault("optim", {})["warmup_steps"] = 0
    found["tracking"] = {"wandb": "disabled"}
    return found


def leaves(schema: type, prefix: str = "") -> dict[str, Field[Any]]:
    """The field of every setting."""
    found: dict[str, Field[Any]] = {}
    hints = get_type_hints(schema)
    for item in fields(schema):
        key, hint = prefix + item.name, hints[item.name]
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        found |= {key: item} if inner is None else leaves(inner, f"{key}.")
    return found


def value_for(item: Field[Any], chance: random.Random) -> str:
    """One of TEXTS, of the choices of a field, or at or beside an end of its range."""
    limit = limit_of(item)
    ends = [end for end in (limit.above, limit.at_least, limit.below, limit.at_most) if math.isfinite(end)]
    own = [*limit.choices, *(f"{choice}x" for choice in limit.choices[:1])]
    own += [str(end + by) for end in ends for by in (-1, 0, 1)] + ["1", "2", "0.1"] * bool(ends)
    own += ["true", "false"] * ("bool" in str(item.type))
    text = chance.choice(own if own and chance.random() < 0.6 else TEXTS)
    pair = "tuple" in str(item.type)
    return f"[{text}, {chance.choice(own)}]" if pair and own and chance.random() < 0.5 else text


def mutate(folder: Path, data: Data, chance: random.Random) -> tuple[Path, list[str], type[Config], str]:
    """(recipe, settings of the command line, schema, what was changed)."""
    source = chance.choice(RECIPES)
    schema = FinetuneConfig if "finetune" in str(source) else Config
    values, known = tiny(source, data), leaves(schema)
    settings: list[str] = []
    said: list[str] = []
    raw: list[str] = []
    for _ in range(chance.choice((1, 1, 2))):
        key = chance.choice(list(known))
        text = value_for(known[key], chance)
        how = chance.random()
        if how < 0.08:  # an unknown key
            key = chance.choice((f"{key}x", key.rpartition(".")[2], key.upper(), f"model.{key}", "🙂", "a b"))
        elif how < 0.12:  # a group
            key = key.partition(".")[0]
        said.append(f"{key}={text!r}")
        if chance.random() < 0.5:
            settings.append(f"{key}={text}")
            continue
        group, *names = [values, *key.split(".")]
        for name in names[:-1]:
            group = group.setdefault(name, {}) if isinstance(group.get(name, {}), dict) else {}
        group[names[-1]] = f"@{len(raw)}@"
        raw.append(text)
    written = yaml.safe_dump(values, allow_unicode=True, width=10**6)
    for number, text in enumerate(raw):
        written = written.replace(f"'@{number}@'", text)
    if chance.random() < 0.03:
        written += chance.choice(("data: {}\n", "\t", "- x\n", "optim: [\n", "--- \na: b\n", "\0"))
        said.append("the text of the recipe")
    recipe = folder / "recipe.yaml"
    recipe.write_bytes(written.encode())
    return recipe, settings, schema, f"{source.name}: {' and '.join(said)}"


def accepted(recipe: Path, settings: list[str], schema: type[Config]) -> Config | str:
    """The configuration if a job would start with it, or why not. Raises whatever is no UserError."""
    try:
        config = load(str(recipe), settings, schema)
        resolve(config.model).grid(config.data.tile_size)
        split_job(config, 1)
        planned_model(config, open_inputs(config).num_classes)
    except UserError as error:
        text = str(error)
        assert error.exit_code in (2, 3) and 10 < len(text) < 1500 and text.isprintable(), repr(text)
        return text
    return config


def is_small(config: Config) -> bool:
    """Whether two steps of it take a moment."""
    model = planned_model(config, 3)
    sizes = {**vars(config.data), **vars(config.train), **vars(config.model)}
    return (
        sum(parameter.numel() for parameter in model.parameters()) < MANY
        and all((sizes[key] or 0) <= most for key, most in SIZES.items())
        and config.train.steps <= 20
        and config.train.epochs < 1
        and config.data.max_tiles <= 4
        and config.data.eval_resize <= 64
        and not config.engine.compile
        and config.tracking.wandb == "disabled"
        and not config.fault.startswith(("kill", "hang", "raise", "disk"))
    )


def train(recipe: Path, settings: list[str], folder: Path) -> str:
    """How a run of it ended, if that was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    done = run("pretrain", recipe, *settings, f"run.dir={folder}")
    printed = done.stdout + done.stderr
    if done.returncode not in (0, 2, 3, 4) or "Traceback" in printed:
        return f"exit code {done.returncode}: {printed}"
    if done.returncode:
        return (
            "" if "error: " in done.stderr else f"exit code {done.returncode} without a sentence: {printed}"
        )
    rows = [row for found in folder.glob("*") for row in metrics(found) if "loss" in row]
    if not rows or any(row["loss"] is not None and not math.isfinite(row["loss"]) for row in rows):
        return f"losses {[row['loss'] for row in rows]}"
    return ""


def drill(folder: Path, data: Data, mutations: int, trained: int, seed: int) -> None:
    """`mutations` mutations, of whose accepted ones `trained` train; AssertionError with what went wrong."""
    wrong, refused, runs = [], 0, 0
    for number in range(mutations):
        chance = random.Random(f"{seed} {number}")
        recipe, settings, schema, what = mutate(folder, data, chance)
        try:
            config = accepted(recipe, settings, schema)
            if isinstance(config, str):
                refused += 1
            elif schema is Config and runs < trained and is_small(config):
                runs += 1
                if problem := train(recipe, settings, folder / "runs"):
                    wrong.append(f"{number}: {what}: {problem}")
        except Exception as error:
            wrong.append(f"{number}: {what}: {type(error).__name__}: {error}")
    print(
        f"{mutations} mutations: {refused} refused, {mutations - refused} accepted, of which {runs} trained"
    )
    assert not wrong, "\n".join(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--trained", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drill(folder, pack(folder), given.mutations, given.trained, given.seed)


if __name__ == "__main__":
    main()
