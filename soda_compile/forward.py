"""Replaces one module's forward by a compiled one, for a while, without touching its class."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch

from soda_compile.errors import OptionError


def compile_forward(module: torch.nn.Module, backend: Callable[..., Any]) -> Callable[..., Any]:
    """Sets ``module.forward`` to a compiled one; hooks and the module itself stay as they are.

    Dynamo counts recompilations by code object, which all instances of a class share, and gives up after a few. A
    code object of its own for each compiled instance lets any number of them live side by side.

    Returns:
        The compiled forward, for ``restore_forward``.

    Raises:
        OptionError: If the instance's forward is replaced already.
    """
    if "forward" in module.__dict__:
        raise OptionError(
            f"the forward of this {type(module).__name__} is replaced already; if soda_compile did it, call "
            "soda_compile.restore(pipe) first"
        )
    function: FunctionType = module.forward.__func__  # type: ignore[attr-defined]
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    compiled: Callable[..., Any] = torch.compile(
        MethodType(own, module), backend=backend, fullgraph=True, dynamic=False
    )
    module.forward = compiled
    return compiled


def restore_forward(module: torch.nn.Module, compiled: Callable[..., Any]) -> None:
    """Takes back ``compile_forward``, unless somebody else has replaced the forward since."""
    if module.__dict__.get("forward") is compiled:
        del module.forward
