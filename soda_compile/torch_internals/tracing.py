"""Use of torch that is not public API, but for Inductor (``inductor``). Checked with torch 2.11 and 2.13.

Dynamo and Inductor are imported where they are used: they take seconds, and a process that only runs a package from
``soda_compile.load`` needs neither.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._logging._internal import trace_structured
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten as tree_flatten
from torch.utils._pytree import tree_unflatten as tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary as WeakIdKeyDictionary

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
TO_TENSOR = torch._refs.tensor
"""What stands in Dynamo's graphs for ``torch.tensor`` of a number."""

BUILT_IN = ("aten", "prims", "_c10d_functional")  # namespaces of operators that mean the same in every process


def capture_failures() -> tuple[type[Exception], ...]:
    """Return the errors of Dynamo where it cannot capture a model as one graph; for an ``except`` clause."""
    from torch._dynamo.exc import Unsupported, UserError
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return Unsupported, UserError, GuardOnDataDependentSymNode


def limit_hit() -> type[Exception]:
    """Return the error of Dynamo where one function was compiled too often as a whole; for an ``except`` clause."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return FailOnRecompileLimitHit


def unchecked(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Let what was compiled with ``fullgraph=True`` not check in each call that compiled code has run.

    Torch 2.13 and 2.14 count that for all threads together, so that the check fails in one thread where another begins
    a call at the wrong time. Graph breaks and too many compilations stay errors.
    """
    names = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(compiled, "__closure__", None) or (), strict=True):
        if name == "self" and hasattr(cell.cell_contents, "fullgraph"):
            cell.cell_contents.fullgraph = False
    return compiled


def recompile_limit() -> int:
    """Return how often Dynamo compiles one function."""
    from torch._dynamo import config

    return int(config.recompile_limit)


def source_name(placeholder: fx.Node) -> str:
    """Return where Dynamo found a graph input, as a Python expression; empty when it does not say."""
    argument = placeholder.meta.get("grapharg")
    name = getattr(getattr(argument, "source", None), "name", "")
    return str(name() if callable(name) else name)  # a method up to torch 2.9, a property after


def is_wrapper(value: Any) -> bool:
    """Return whether a value is a tensor subclass around plain tensors, such as a quantised weight."""
    return bool(is_traceable_wrapper_subclass(value))


@contextmanager
def specialised(inputs: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Give example inputs with the sizes that they have now, each guarded: other sizes compile again.

    Where Dynamo made sizes symbolic, its tracing context is hidden, which knows guards on its symbols.
    """
    from torch._guards import tracing
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_int

    sizes = [size for value in inputs if isinstance(value, torch.Tensor) for size in (*value.shape, *value.stride())]
    symbolic = any(isinstance(value, torch.SymInt) for value in (*inputs, *sizes))
    shape_env = getattr(_home_mode(), "shape_env", None)
    if not symbolic and not getattr(shape_env, "guards", ()):  # floats leave guards too
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


def refake(value: Any) -> Any:
    """Return fake tensors of the fake mode that is being traced under, so that graphs of one model can be mixed."""
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(value, list | tuple):
        return type(value)(refake(item) for item in value)
    mode = _home_mode()
    if mode is None or not isinstance(value, FakeTensor) or value.fake_mode is mode:
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def refake_mode() -> AbstractContextManager[Any]:
    """Return the fake mode that is being traced under; a new one where nothing is."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return _home_mode() or FakeTensorMode()


def _home_mode() -> Any:
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    return context.fake_mode if context else None


def tracing_state() -> list[str]:
    """Return the settings of the process that a trace can depend on, a line each."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    modes = [
        *_get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
        *_get_current_dispatch_mode_stack(),
    ]
    casts = {
        device: torch.get_autocast_dtype(device)
        for device in torch._C._autocast_supported_devices()
        if torch.is_autocast_enabled(device)
    }
    attention = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math")]
    return [
        f"grad {torch.is_grad_enabled()}, inference {torch.is_inference_mode_enabled()}, autocast {casts}",
        f"defaults {torch.get_default_dtype()} {torch.get_default_device()}, modes {[type(mode) for mode in modes]}",
        f"deterministic {torch.are_deterministic_algorithms_enabled()}, attention {attention}",
    ]


def refused_by_caches(module: fx.GraphModule) -> str:
    """Return why PyTorch's own caches of graphs would not keep this one; empty if they would."""
    from torch._functorch._aot_autograd.autograd_cache import check_cacheable
    from torch._inductor import config

    if config.force_disable_caches:
        return "caches are disabled"
    try:
        check_cacheable(module)
    except Exception as error:
        return str(error)
    return ""


def inductor_cache_folder() -> Path:
    """Return where Inductor keeps its caches, without making the folder as Inductor's own function does."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = os.environ.get(CACHE_VARIABLE)
    return Path(default_cache_dir() if folder is None else folder).absolute()


def known_float(value: Any, *, of_sizes: bool) -> float | None:
    """Return the number behind a symbolic float that Dynamo knows, with a guard; None for anything else.

    Args:
        value: What may be such a float.
        of_sizes: Whether to take a float that follows from symbolic sizes as well, which a guard would fix.
    """
    from torch.fx.experimental.symbolic_shapes import guard_float

    if not isinstance(value, torch.SymFloat) or not value.node.has_hint():
        return None
    follows = any(symbol.is_integer for symbol in value.node.expr.free_symbols)
    return guard_float(value) if of_sizes or not follows else None


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
        """Return whether a condition surely holds where the symbols have these values, by name."""
        numbers = {self.symbols[name]: sympy.Integer(value) for name, value in values.items()}
        return bool(condition.xreplace(numbers) == sympy.true)

    def about(self, condition: Any) -> set[Any]:
        """Return the names of the symbols in a condition."""
        return {name for name, symbol in self.symbols.items() if symbol in condition.free_symbols}


def size_guards(sizes: Mapping[Any, Any]) -> SizeGuards:
    """Return the guards on symbolic sizes so far; numbers among the sizes are taken as they are."""
    symbolic = {name: size.node for name, size in sizes.items() if isinstance(size, torch.SymInt)}
    if not symbolic:
        return SizeGuards((), {})
    shape_env = next(iter(symbolic.values())).shape_env
    return SizeGuards(
        conditions=tuple(dict.fromkeys(guard.expr for guard in shape_env.guards)),
        symbols={name: node._expr for name, node in symbolic.items()},
    )


def forget_compiled(codes: Iterable[CodeType]) -> None:
    """Free all that Dynamo compiled for code objects that nobody runs any more.

    It would keep that for ever: what it makes of a code object hangs on it, and its map from one to the other back.
    """
    from torch._C._dynamo.eval_frame import reset_code

    for code in codes:
        reset_code(code)


def mark_dynamic(tensor: torch.Tensor, axis: int) -> None:
    """Make Dynamo take the size of this axis as symbolic; it may find out that the model takes one size only."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, axis)


def linear_dim(dim: Any) -> tuple[Any, int, int] | None:
    """Return a ``torch.export.Dim`` as ``scale * root + shift``; None for anything else."""
    if not isinstance(dim, torch.export.Dim):
        return None
    root, function = getattr(dim, "root", dim), getattr(dim, "fn", int)  # a multiple of another has both
    return root, function(1) - function(0), function(0)


def new_fake_mode() -> Any:
    """Return a mode in which tensors are made that hold no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def fake_mode_of(values: Any) -> AbstractContextManager[Any]:
    """Return the fake mode that the fake tensors among ``values`` belong to; nothing if there are none."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(values) or nullcontext()


def sizes_of_data_forgotten(values: Any) -> AbstractContextManager[Any]:
    """Return a context to run a graph in for a look at its outputs: a trace that comes later would miss its sizes.

    An operator such as ``nonzero``, whose output has a size that depends on data, leaves a new symbol for it, which
    whatever is traced next must return.
    """
    mode: Any = fake_mode_of(values)
    shape_env = getattr(mode, "shape_env", None)
    return shape_env.ignore_fresh_unbacked_symbols() if shape_env is not None else nullcontext()


def log_artifact(name: str, text: Callable[[], str]) -> None:
    """Add a text to the trace that ``TORCH_TRACE`` writes and tlparse shows."""
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)
