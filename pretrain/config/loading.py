"""How a YAML recipe and key=value become one checked configuration.

Nothing here imports torch, so that the message about a wrong key comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.errors import UsageError, cannot_read, retrying, without_secrets

from .checks import check
from .keys import check_key, known_keys
from .schema import Config
from .yaml_values import parse_recipe, parse_value

ConfigT = TypeVar("ConfigT", bound=Config)

# In a checkout and beside an installed package alike.
OWN_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PLAIN_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def load(
    path: str,
    overrides: Sequence[str],
    schema: type[ConfigT] = Config,  # type: ignore[assignment]  # a type variable has no default before 3.13
    defaults: dict[str, Any] | None = None,
) -> ConfigT:
    """The recipe at `path`, changed by the key=value texts `overrides`, and checked.

    defaults: values that replace the schema's own defaults; the recipe replaces both. Raises UsageError that
    names the wrong key or value, and the nearest right one.
    """
    for text in (path, *overrides):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"'{text}': it is not UTF-8: give the file or folder another name") from None
    path = find_recipe(path)
    config = _to_object(_merge(schema, path, overrides, defaults or {}), path)
    config.run.name = config.run.name or Path(path).stem
    check(config)
    return config


def find_recipe(path: str) -> str:
    """`path`; configs/NAME that is not in the working folder is the project's own recipe of that name."""
    own = OWN_CONFIGS.parent / path
    is_own = Path(path).parts[:1] == (OWN_CONFIGS.name,) and not Path(path).exists() and own.is_file()
    return str(own) if is_own else path


def save(config: Config, path: Path) -> None:
    """Write `config` to the file `path` as YAML, for `read`; URLs without_secrets()."""
    values = _escaped(without_secrets(asdict(config)))
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(values)), encoding="utf-8")


def _escaped(value: Any) -> Any:
    """The value for OmegaConf, which would take ${...} in a text for a reference."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def read(path: Path, schema: type[ConfigT] = Config) -> ConfigT:  # type: ignore[assignment]  # as in load
    """The configuration of an earlier run, from the file `path` that `save` wrote; not checked."""
    return _to_object(_merge(schema, str(path), [], {}), str(path))


def changes(old: Config, new: Config) -> dict[str, str]:
    """{key: "old → new"} of the keys whose values differ."""
    before, after = (flat(without_secrets(asdict(config))) for config in (old, new))
    return {
        key: f"{_said(before.get(key))} → {_said(value)}"
        for key, value in after.items()
        if before.get(key) != value
    }


def _said(value: object) -> str:
    return "(empty)" if value == "" else str(value)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _merge(schema: type[Config], path: str, overrides: Iterable[str], defaults: dict[str, Any]) -> DictConfig:
    try:
        recipe = parse_recipe(retrying(lambda: Path(path).read_text(encoding="utf-8")), schema, path)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such recipe; those that come with the project lie in {OWN_CONFIGS}"
        ) from None
    except OSError as error:
        raise cannot_read(UsageError, f"{path}: cannot be read: {error.strerror}", error) from None
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    keys = known_keys(schema)
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"'{item}': settings are written key=value")
        check_key(key, keys, "command line")
        given[key] = parse_value(value, key, keys)
    try:
        merged = OmegaConf.merge(_defaults(schema), defaults, recipe)  # type: ignore[arg-type]  # a class can be hashed
        for key, value in given.items():
            nested: Any = value
            for name in reversed(key.split(".")):
                nested = {name: nested}
            merged = OmegaConf.unsafe_merge(merged, nested)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {_first_line(error)}") from None
    assert isinstance(merged, DictConfig)
    for one, other, none in (("steps", "epochs", 0.0), ("epochs", "steps", 0)):
        # The command line's duration replaces the recipe's.
        if f"train.{one}" in given and f"train.{other}" not in given and merged.train[one]:
            merged.train[other] = none
    return merged


@cache
def _defaults(schema: type[Config]) -> DictConfig:
    return OmegaConf.structured(schema)


def _to_object(merged: DictConfig, path: str) -> Any:
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UsageError(f"{path}: {_first_line(error)}") from None
    return config


def _first_line(error: Exception) -> str:
    """OmegaConf's message in plain words, after the key if OmegaConf names it."""
    text = str(error).strip().splitlines()
    key = next((line.split(":", 1)[1].strip() for line in text if "full_key" in line), "")
    kind = re.search(r"could not be converted to (\w+)", text[0])
    first = text[0]
    if kind and kind[1] in PLAIN_TYPES:
        first = f"it must be {PLAIN_TYPES[kind[1]]}"
    return f"{key}: {first}" if key else first
