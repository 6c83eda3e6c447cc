"""timm itself, where it is installed. It needs torchvision only for what no test uses, so a stub will do."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from importlib.util import find_spec
from typing import Any

import pytest


class _Nothing(type):
    """A class of torchvision's as the stub has it: each of its attributes is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and its modules, in which every name is an empty class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return _Nothing(name, (), {})

        module = types.ModuleType(spec.name)
        module.__dict__["__getattr__"] = attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def timm_or_skip() -> types.ModuleType:
    """timm; the test is skipped where it is not installed."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    if find_spec("torchvision") is None:
        sys.meta_path.append(_Torchvision())
    import timm

    return timm
