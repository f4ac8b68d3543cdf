"""Every override of Inductor's internals, and of the wrappers around its code. Checked with torch 2.11 and 2.13.

They save time alone: with ``SODA_COMPILE_PATCH_INDUCTOR=0`` in the environment Inductor is left as it is, and gives
the same numbers.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx

from soda_compile.errors import OptionError
from soda_compile.torch_internals.tracing import BUILT_IN, fake_mode_of, sizes_of_data_forgotten

Compiled = Callable[..., Sequence[Any]]

SWITCH = "SODA_COMPILE_PATCH_INDUCTOR"


def patches_enabled() -> bool:
    """Return the state of the switch.

    Raises:
        OptionError: It is neither 0 nor 1.
    """
    value = os.environ.get(SWITCH, "1")
    if value not in ("0", "1"):
        raise OptionError(f"{SWITCH} is {value!r}; set 0 to leave Inductor as it is, or 1, the default")
    return value == "1"


@contextmanager
def deferred_kernel_builds() -> Iterator[None]:
    """Wait for the C++ compiler once, after the last graph, where Inductor waits after each.

    What is compiled can be called after the context only.
    """
    from torch._dynamo.convert_frame import compile_lock
    from torch._inductor.async_compile import AsyncCompile

    if not patches_enabled():
        yield
        return
    wait, waiting = AsyncCompile.wait, []

    def later(compiler: AsyncCompile, scope: dict[str, Any]) -> None:
        waiting.append((compiler, scope))

    with compile_lock:  # no other thread may compile, and find that its kernels are not there
        try:
            with mock.patch.object(AsyncCompile, "wait", later):
                yield
        finally:
            for compiler, scope in waiting:
                wait(compiler, scope)


def call_directly(compile_graph: Callable[[], Compiled], module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    """Compile a graph and leave out the wrappers around Inductor's code where they do nothing.

    What ``compile_fx`` returns passes through a stack of wrappers that regenerate aliases of inputs and unpack
    subclasses, some 15 us a call. A graph that needs none of that is called directly.

    Args:
        compile_graph: Calls ``compile_fx`` on the graph.
        module: The graph.
        inputs: Its inputs, as fake tensors.
    """
    if not patches_enabled() or not _is_plain(module, inputs):
        return compile_graph()
    with _generated_code() as generated:
        compiled = compile_graph()
    return _DirectCall(compiled, generated[0]) if len(generated) == 1 else compiled


@contextmanager
def _generated_code() -> Iterator[list[Any]]:
    """Collect the code objects that Inductor makes, or loads from its caches, inside the context."""
    from torch._inductor.output_code import CompiledFxGraph

    found: list[Any] = []
    post_compile = CompiledFxGraph.post_compile

    def note(code: Any, *args: Any, **kwargs: Any) -> None:
        post_compile(code, *args, **kwargs)
        found.append(code)

    with mock.patch.object(CompiledFxGraph, "post_compile", note):
        yield found


class _DirectCall:
    """Calls Inductor's code; the first time as torch does, which ends the recording of autotuned choices."""

    __slots__ = ("_code", "_compiled", "_run")

    def __init__(self, compiled: Compiled, code: Any) -> None:
        self._run: Callable[[list[Any]], Sequence[Any]] | None = None
        self._compiled = compiled
        self._code = code

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        if self._run is None or torch.autograd.profiler._is_profiler_enabled:  # torch notes the call for the profiler
            results = self._compiled(*inputs)
            self._run = self._code.current_callable
            return results
        return self._run(list(inputs))


def _is_plain(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether Inductor's code gives just what the graph gives: no output is an input, or a view of one."""
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            return False
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in BUILT_IN:
            return False
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
    results: Any = module.graph.output_node().args[0]
    if all(isinstance(result, fx.Node) and not _may_be_input(result) for result in results):
        return True
    with fake_mode_of(inputs), sizes_of_data_forgotten(inputs):
        outputs = module(*inputs)
    storages = {value.untyped_storage()._cdata for value in inputs if isinstance(value, torch.Tensor)}
    return all(isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in storages for value in outputs)


def _may_be_input(node: fx.Node) -> bool:
    """Return whether a result could be an input or a view of one; told by operators alone, so at times too careful."""
    if node.op == "placeholder":
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        views = any(result.alias_info is not None for result in node.target._schema.returns)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(str(node.target._name), "CompositeImplicitAutograd")
        if not views and not composite:
            return False
    return any(_may_be_input(source) for source in node.all_input_nodes)
