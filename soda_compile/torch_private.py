"""Every use of torch that is not public API. Checked with torch 2.11 and 2.13.

Dynamo and Inductor are imported where they are used: they take seconds, and a process that only runs a package from
``soda_compile.load`` needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._logging._internal import trace_structured
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

Compiled = Callable[..., Sequence[Any]]

__all__ = [
    "Compiled",
    "SizeGuards",
    "WeakIdKeyDictionary",
    "add_axis",
    "aot_compile",
    "at_home",
    "capture_failures",
    "fake_mode_of",
    "inductor_compile",
    "inductor_options",
    "is_wrapper",
    "known_float",
    "largest_size",
    "linear_dim",
    "log_artifact",
    "mark_dynamic",
    "mode_options",
    "open_piece",
    "plain_inductor",
    "size_guards",
    "source_name",
    "specialised",
]


def capture_failures() -> tuple[type[Exception], ...]:
    """What Dynamo raises where it cannot capture a model as one graph; for an ``except`` clause."""
    from torch._dynamo.exc import Unsupported, UserError

    return Unsupported, UserError


def source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found this graph input, as a Python expression; empty when it does not say."""
    argument = placeholder.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", "")
    return str(name() if callable(name) else name)  # a method up to torch 2.9, a property after


def is_wrapper(value: Any) -> bool:
    """Whether a value is a tensor subclass around plain tensors, such as a quantised weight."""
    return bool(is_traceable_wrapper_subclass(value))


@contextmanager
def specialised(inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Example inputs with the sizes that they have now, each guarded: other sizes compile again.

    Where Dynamo made sizes symbolic, its tracing context is hidden, which knows guards on its symbols.
    """
    from torch._guards import tracing
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_int

    sizes = [size for value in inputs if isinstance(value, torch.Tensor) for size in (*value.shape, *value.stride())]
    if not any(isinstance(value, torch.SymInt) for value in (*inputs, *sizes)):
        yield tuple(inputs)
        return
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]))

    def fixed(value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return guard_int(value)
        if not isinstance(value, FakeTensor):
            return value
        shape, stride = [guard_int(size) for size in value.shape], [guard_int(size) for size in value.stride()]
        with fake_mode:
            return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)

    static = tuple(fixed(value) for value in inputs)
    with tracing(None):
        yield static


def at_home(value: Any) -> Any:
    """Fake tensors as members of the fake mode that is being traced under, so that graphs of one model can be mixed."""
    from torch._guards import TracingContext
    from torch._subclasses.fake_tensor import FakeTensor

    context = TracingContext.try_get()
    if isinstance(value, list | tuple):
        return type(value)(at_home(item) for item in value)
    if context is None or not isinstance(value, FakeTensor) or value.fake_mode is context.fake_mode:
        return value
    assert context.fake_mode is not None
    with context.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def known_float(value: Any) -> float | None:
    """The number behind a symbolic float that Dynamo knows, with a guard; None for anything else."""
    from torch.fx.experimental.symbolic_shapes import guard_float

    return guard_float(value) if isinstance(value, torch.SymFloat) and value.node.has_hint() else None


def largest_size(size: torch.SymInt) -> int:
    """The largest value of a size that depends on data, such as the tokens that a mask keeps; 0 if unbounded."""
    upper = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(upper) if upper.is_Integer else 0


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
    builtin = ("aten", "prims")
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            return False
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in builtin:
            return False
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
    with fake_mode_of(inputs):
        outputs = module(*inputs)
    storages = {value.untyped_storage()._cdata for value in inputs}
    return all(isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in storages for value in outputs)


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


@dataclass(frozen=True)
class SizeGuards:
    """Conditions on symbolic sizes, as sympy expressions.

    Attributes:
        conditions: What must be true.
        symbols: The symbols, by a name for each.
    """

    conditions: tuple[Any, ...]
    symbols: Mapping[Any, Any]

    def holds(self, condition: Any, values: Mapping[Any, int]) -> bool:
        """Whether a condition surely holds where the symbols have these values, by name."""
        numbers = {self.symbols[name]: sympy.Integer(value) for name, value in values.items()}
        return bool(condition.xreplace(numbers) == sympy.true)

    def about(self, condition: Any) -> set[Any]:
        """Names of the symbols in a condition."""
        return {name for name, symbol in self.symbols.items() if symbol in condition.free_symbols}


def size_guards(sizes: Mapping[Any, Any]) -> SizeGuards:
    """What was taken for granted about symbolic sizes so far; numbers among them are taken as they are."""
    symbolic = {name: size.node for name, size in sizes.items() if isinstance(size, torch.SymInt)}
    if not symbolic:
        return SizeGuards((), {})
    shape_env = next(iter(symbolic.values())).shape_env
    return SizeGuards(
        conditions=tuple(dict.fromkeys(guard.expr for guard in shape_env.guards)),
        symbols={name: node._expr for name, node in symbolic.items()},
    )


def mark_dynamic(tensor: torch.Tensor, axis: int) -> None:
    """Makes Dynamo take the size of this axis as symbolic."""
    import torch._dynamo

    torch._dynamo.mark_dynamic(tensor, axis)


def linear_dim(dim: Any) -> tuple[Any, int, int] | None:
    """A ``torch.export.Dim`` as ``scale * root + shift``; None for anything else."""
    if not isinstance(dim, torch.export.Dim):
        return None
    root, function = getattr(dim, "root", dim), getattr(dim, "fn", int)  # a multiple of another has both
    return root, function(1) - function(0), function(0)


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


def fake_mode_of(values: Any) -> AbstractContextManager[Any]:
    """The fake mode that the fake tensors among ``values`` belong to; nothing if there are none."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(values) or nullcontext()


def log_artifact(name: str, text: Callable[[], str]) -> None:
    """Adds a text to the trace that ``TORCH_TRACE`` writes and tlparse shows."""
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)
