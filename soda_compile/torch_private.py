"""Every use of torch that is not public API. Checked with torch 2.11 and 2.13."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.config
from torch import fx
from torch._guards import TracingContext, tracing
from torch._inductor import list_mode_options, list_options
from torch._inductor.compile_fx import compile_fx
from torch._logging._internal import trace_structured
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_int
from torch.utils.weak import WeakIdKeyDictionary

Compiled = Callable[..., Sequence[Any]]

__all__ = [
    "Compiled",
    "WeakIdKeyDictionary",
    "inductor_compile",
    "inductor_options",
    "log_artifact",
    "mode_options",
    "plain_inductor",
    "source_name",
    "specialise",
]


def source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found this graph input, as a Python expression; empty when it does not say."""
    argument = placeholder.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", "")
    return str(name() if callable(name) else name)  # a method up to torch 2.9, a property after


def specialise(value: Any) -> Any:
    """A symbolic size as the number it has now, with a guard so that another size compiles again."""
    return guard_int(value) if isinstance(value, torch.SymInt) else value


def inductor_compile(module: fx.GraphModule, options: dict[str, Any]) -> Compiled:
    """Compiles a graph of static shapes with Inductor, on its own, whatever is being traced around it.

    A fresh fake mode and tracing context for each graph: sharing them gives kernels with dynamic shapes and
    unstable cache keys.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    with fake_mode:
        inputs = [
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            for value in (node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
        ]
    # compile_fx takes the graph over, so it gets a copy without the other mode's fake tensors.
    copy = fx.GraphModule(module, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    result = copy.graph.graph_copy(module.graph, values)
    copy.graph.output(result)
    for node in copy.graph.nodes:
        node.meta = {}
    copy.recompile()
    with torch.no_grad(), tracing(TracingContext(fake_mode)):
        compiled: Compiled = compile_fx(copy, inputs, config_patches=options or None, ignore_shape_env=True)  # type: ignore[assignment]
    return compiled


def plain_inductor(module: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """What ``torch.compile`` does without us."""
    compiled: Callable[..., Any] = compile_fx(module, list(inputs), config_patches=options or None)  # type: ignore[assignment]
    return compiled


def mode_options(mode: str | None) -> dict[str, Any]:
    """Inductor's settings for a ``torch.compile`` mode."""
    return dict(list_mode_options(mode)) if mode else {}


def inductor_options() -> list[str]:
    """Names of all settings Inductor takes."""
    return list(list_options())


def log_artifact(name: str, text: Callable[[], str]) -> None:
    """Adds a text to the trace that ``TORCH_TRACE`` writes and tlparse shows."""
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)
