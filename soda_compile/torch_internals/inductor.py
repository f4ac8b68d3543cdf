"""Inductor, where it is not public API: graphs compiled on their own. Checked with torch 2.11 and 2.13.

It is imported where it is used, as ``torch_private`` explains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.tracing import BUILT_IN, SizeGuards, fake_mode_of, size_guards

Compiled = Callable[..., Sequence[Any]]


@contextmanager
def compiler_probed(device: torch.device) -> Iterator[None]:
    """Meanwhile finds out which vector instructions the C++ compiler can use, where kernels for ``device`` need it.

    Inductor asks before its first kernel and builds and loads a library for each set of instructions, one after the
    other, for seconds. Here all are built at once, while something else is done.
    """
    from torch._inductor import cpu_vec_isa

    supported = cpu_vec_isa.x86_isa_checker() if device.type == "cpu" else []
    known = [isa for isa in cpu_vec_isa.supported_vec_isa_list if all(flag in supported for flag in str(isa).split())]
    with ThreadPoolExecutor() as pool:
        for isa in known:
            pool.submit(bool, isa)  # torch keeps the answer
        importlib.import_module("torch._inductor.compile_fx")  # half a second, which is needed soon
        yield


@contextmanager
def kernels_built_together() -> Iterator[None]:
    """Inductor waits for the C++ compiler after each graph; here it goes on with the next, and waits after the last.

    What is compiled can be called after the context only.
    """
    from unittest import mock

    from torch._dynamo.convert_frame import compile_lock
    from torch._inductor.async_compile import AsyncCompile

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


def inductor_compile(module: fx.GraphModule, options: dict[str, Any]) -> Compiled:
    """Compiles a graph of static shapes with Inductor, on its own, whatever is being traced around it.

    What ``compile_fx`` returns passes through a stack of wrappers that regenerate aliases of inputs and unpack
    subclasses, some 15 us a call. A graph that needs none of that is called directly.
    """
    from torch._inductor.compile_fx import compile_fx

    with _alone(module, {}) as (copy, inputs, _):
        plain = _is_plain(copy, inputs)
        with _generated_code() as generated:
            compiled: Compiled = compile_fx(copy, inputs, config_patches=options or None, ignore_shape_env=True)  # type: ignore[assignment]
    return _DirectCall(compiled, generated[0]) if plain and len(generated) == 1 else compiled


def add_axis(module: fx.GraphModule, size: int, batched: Sequence[bool]) -> fx.GraphModule:
    """The graph over one more axis, the first of its outputs and of those inputs that are batched.

    Raises:
        RuntimeError: If an operator can only be repeated for each entry.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    functorch: Any = torch._C._functorch
    repeats = functorch._is_vmap_fallback_enabled()
    with _alone(module, {}) as (copy, inputs, _), fake_mode_of(inputs), torch.inference_mode(False):
        wide = [
            torch.empty((size, *value.shape), dtype=value.dtype, device=value.device) if wider else value
            for value, wider in zip(inputs, batched, strict=True)
        ]
        functorch._set_vmap_fallback_enabled(False)
        try:
            with torch.autocast(inputs[0].device.type, enabled=False), torch.no_grad():  # casts are in the graph
                return make_fx(torch.func.vmap(copy, in_dims=tuple(0 if one else None for one in batched)))(*wide)
        finally:
            functorch._set_vmap_fallback_enabled(repeats)


def _is_plain(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether Inductor's code gives just what the graph gives: no output is an input, or a view of one."""
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
    with fake_mode_of(inputs):
        outputs = module(*inputs)
    storages = {value.untyped_storage()._cdata for value in inputs}
    return all(isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in storages for value in outputs)


def _may_be_input(node: fx.Node) -> bool:
    """Whether a result could be an input, or a view of one; told from the operators alone, so sometimes too careful."""
    if node.op == "placeholder":
        return True
    if isinstance(node.target, torch._ops.OpOverload):
        views = any(result.alias_info is not None for result in node.target._schema.returns)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(str(node.target._name), "CompositeImplicitAutograd")
        if not views and not composite:
            return False
    return any(_may_be_input(source) for source in node.all_input_nodes)


@contextmanager
def _generated_code() -> Iterator[list[Any]]:
    """Collects the code objects that Inductor makes, or loads from its caches, inside the context."""
    from unittest import mock

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


def aot_compile(
    module: fx.GraphModule, options: dict[str, Any], folder: str, hints: Mapping[str, int] | None = None
) -> tuple[list[str], SizeGuards]:
    """Compiles a graph with AOTInductor.

    Args:
        module: The graph. Where a placeholder has dynamic sizes, ``layout`` in its meta has them with its strides.
        options: Settings for Inductor.
        folder: Where the files go.
        hints: The dynamic dimensions with a typical value, none of them 1.

    Returns:
        Paths of the files, sources among them (``open_piece`` needs those that are not sources), and the conditions
        on the dynamic dimensions that the code rests on.
    """
    from torch._inductor.compile_fx import compile_fx_aot

    # Without line tables the code is a third of the size.
    smaller = {"aot_inductor.enable_line_tables": False, "aot_inductor.enable_frame_pointer": False}
    known = set(inductor_options())
    packaging = {"aot_inductor.package": True, "aot_inductor.output_path": folder}
    patches = {**{name: value for name, value in smaller.items() if name in known}, **options, **packaging}
    with _alone(module, hints or {}) as (copy, inputs, sizes):
        files = compile_fx_aot(copy, inputs, config_patches=patches)
    assert isinstance(files, list)
    return [file for file in files if isinstance(file, str)], size_guards(sizes)


@contextmanager
def _alone(
    module: fx.GraphModule, hints: Mapping[str, int]
) -> Iterator[tuple[fx.GraphModule, list[Any], dict[str, torch.SymInt]]]:
    """A copy of a graph, its inputs and its dynamic sizes, under a fresh fake mode and tracing context.

    Sharing those with other graphs gives kernels with dynamic shapes and unstable cache keys.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shape_env = ShapeEnv()
    fake_mode = FakeTensorMode(shape_env=shape_env)
    sizes = {name: _new_size(shape_env, name, hint) for name, hint in hints.items()}

    def fake(node: fx.Node) -> torch.Tensor:
        value = node.meta["val"]
        shape, stride = node.meta.get("layout", (value.shape, value.stride()))
        known = [[size if isinstance(size, int) else size.at(sizes) for size in entry] for entry in (shape, stride)]
        return torch.empty_strided(*known, dtype=value.dtype, device=value.device)

    with fake_mode:
        inputs: list[Any] = [fake(node) for node in module.graph.nodes if node.op == "placeholder"]
    # compile_fx takes the graph over, so it gets a copy without the other mode's fake tensors.
    copy = fx.GraphModule(module, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    result = copy.graph.graph_copy(module.graph, values)
    copy.graph.output(result)
    for node in copy.graph.nodes:
        node.meta = {}
    copy.recompile()
    with torch.no_grad(), tracing(TracingContext(fake_mode)):
        yield copy, inputs, sizes


def _new_size(shape_env: Any, name: str, hint: int) -> torch.SymInt:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = ConstantSource(f"__{name}")
    symbol = shape_env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    size: torch.SymInt = shape_env.create_symintnode(symbol, hint=hint, source=source)
    return size


def open_piece(package: str, name: str) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """Loads one model of an AOTInductor package, without Dynamo and Inductor.

    Args:
        package: Path of the .pt2 file.
        name: Name of the model in it.

    Returns:
        A function of a list of tensors, which it may empty.
    """
    loader = torch._C._aoti.AOTIModelPackageLoader(package, name, False, 1, -1)
    run: Callable[[list[torch.Tensor]], list[torch.Tensor]] = loader.boxed_run
    return run


def plain_inductor(module: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """What ``torch.compile`` does without us."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Callable[..., Any] = compile_fx(module, list(inputs), config_patches=options or None)  # type: ignore[assignment]
    return compiled


def mode_options(mode: str | None) -> dict[str, Any]:
    """Inductor's settings for a ``torch.compile`` mode."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode)) if mode else {}


def inductor_options() -> list[str]:
    """Names of all settings Inductor takes."""
    from torch._inductor import list_options

    return list(list_options())
