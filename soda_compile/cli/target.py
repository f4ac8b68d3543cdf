"""Finds the function that a target on the command line names, and calls it for a model and its inputs."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from soda_compile.errors import OptionError

FORMS = "module:function or path/to/file.py:function"


@dataclass(frozen=True)
class Target:
    """A model and what to call it with."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def load_target(text: str) -> Target:
    """Import the function that ``text`` names and call it.

    Args:
        text: ``module:function`` or ``path/to/file.py:function``; the function takes no arguments and returns the
            model and its inputs, a dict by name or a tuple by position.

    Raises:
        OptionError: The module or function does not exist or fails, or returns something else.
    """
    return _check(text, value_of(text))


def value_of(text: str) -> Any:
    """Import the function that ``text`` names, call it, and return what it gives."""
    place, colon, name = text.rpartition(":")
    if not (place and colon and name):
        raise OptionError(f"target {text!r} must be {FORMS}")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"target {text!r}: {place} has no function {name!r}")
    return _call(text, function)


def _load_module(name: str) -> ModuleType:
    _search("")  # a console script does not look in the current folder by itself
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise OptionError(f"cannot import {name}: {_describe(error)}") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise OptionError(f"there is no file {path}")
    name = f"soda_compile_target_{path.stem}"  # not the name of an installed module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dynamo finds the globals of functions there
    _search(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"cannot import {path}: {_describe(error)}") from error
    return module


def _search(folder: str) -> None:
    """Make modules in the folder importable, as Python does for a script's own folder."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _call(text: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        raise OptionError(f"target {text!r} fails: {_describe(error)}") from error


def _check(text: str, value: Any) -> Target:
    match value:
        case (torch.nn.Module() as model, Mapping() as inputs):
            return Target(model, (), dict(inputs))
        case (torch.nn.Module() as model, Sequence() as inputs) if not isinstance(inputs, str):
            return Target(model, tuple(inputs), {})
    raise OptionError(
        f"target {text!r} must return a model and its inputs, (torch.nn.Module, dict or tuple); it returned "
        f"{kind_of(value)}"
    )


def kind_of(value: Any) -> str:
    """Return what a value is, as an error says it."""
    parts = ", ".join(type(part).__name__ for part in value) if isinstance(value, tuple) else ""
    return f"({parts})" if parts else type(value).__name__


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
