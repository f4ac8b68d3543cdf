"""Calls of Inductor that are not public API: graphs compiled on their own. Checked with torch 2.11 and 2.13.

Inductor is imported where it is used, as ``tracing`` explains.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.inductor_patches import Compiled, call_directly
from soda_compile.torch_internals.size_expressions import SizeNames
from soda_compile.torch_internals.tracing import SizeGuards, size_guards


@contextmanager
def compiler_probed(device: torch.device) -> Iterator[None]:
    """Find out meanwhile which vector instructions the C++ compiler can use, where kernels for ``device`` need it.

    Inductor asks before its first kernel and builds and loads a library for each set of instructions, one after the
    other, for seconds. Here all are built at once, while something else is done.
    """
    from torch._inductor import cpu_vec_isa

    supported = cpu_vec_isa.x86_isa_checker() if device.type == "cpu" else []
    usable = [isa for isa in cpu_vec_isa.supported_vec_isa_list if all(flag in supported for flag in str(isa).split())]
    with ThreadPoolExecutor() as pool:
        for isa in usable:
            pool.submit(bool, isa)  # torch keeps the answer
        importlib.import_module("torch._inductor.compile_fx")  # half a second, which is needed soon
        yield


def inductor_compile(module: fx.GraphModule, options: dict[str, Any]) -> Compiled:
    """Compile a graph of static shapes with Inductor, on its own, whatever is being traced around it."""
    from torch._inductor.compile_fx import compile_fx

    with alone(module) as (copy, inputs, _):
        compile_graph = functools.partial(
            compile_fx, copy, inputs, config_patches=options or None, ignore_shape_env=True
        )
        return call_directly(compile_graph, copy, inputs)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class SizedCode:
    """Code that holds for some sizes.

    Attributes:
        function: The code; takes the sizes after the other inputs.
        example: The sizes that it was compiled for.
        guards: Conditions on others.
    """

    function: Compiled
    example: tuple[int, ...]
    guards: SizeGuards

    def holds(self, numbers: Sequence[int]) -> bool:
        """Return whether the code can be called with these sizes."""
        if any(
            number != wanted for number, wanted in zip(numbers, self.example, strict=True) if min(number, wanted) < 2
        ):
            return False  # a size of 1 is broadcast
        values = {name: number for name, number in zip(_names(numbers), numbers, strict=True) if number > 1}
        return all(self.guards.holds(condition, values) for condition in self.guards.conditions)


def inductor_compile_symbolic(
    module: fx.GraphModule, sizes: Sequence[tuple[Any, int]], options: dict[str, Any]
) -> SizedCode:
    """Compile a graph of symbolic shapes with Inductor, on its own, whatever is being traced around it.

    Args:
        module: The graph; the last inputs take the sizes.
        sizes: For each of these inputs what it takes, an expression in the symbols of the graph, and the value in the
            example that the code is tuned for.
        options: Settings for Inductor.
    """
    from torch._inductor.compile_fx import compile_fx

    with alone(module, sizes) as (copy, inputs, symbols):
        compile_graph = functools.partial(compile_fx, copy, inputs, config_patches=options or None)
        function = call_directly(compile_graph, copy, inputs)  # type: ignore[arg-type]
        return SizedCode(function, tuple(hint for _, hint in sizes), size_guards(symbols))


def _names(sizes: Sequence[Any]) -> list[str]:
    return [f"size_{number}" for number in range(len(sizes))]


def aot_compile(
    module: fx.GraphModule, sizes: Sequence[tuple[Any, int]], options: dict[str, Any], folder: str
) -> tuple[list[str], SizeGuards]:
    """Compile a graph with AOTInductor.

    Args:
        module: The graph; the first inputs are empty tensors that tell sizes, see ``with_size_nodes``.
        sizes: What these are, as for ``inductor_compile_symbolic``.
        options: Settings for Inductor.
        folder: Where the files go.

    Returns:
        Paths of the files, sources among them (``open_subgraph`` needs those that are not sources), and the conditions
        on the sizes that the code rests on, by ``size_0`` and so on.
    """
    from torch._inductor.compile_fx import compile_fx_aot

    # Without line tables the code is a third of the size.
    smaller = {"aot_inductor.enable_line_tables": False, "aot_inductor.enable_frame_pointer": False}
    settings = set(inductor_options())
    packaging = {"aot_inductor.package": True, "aot_inductor.output_path": folder}
    patches = {**{name: value for name, value in smaller.items() if name in settings}, **options, **packaging}
    with alone(module, sizes) as (copy, inputs, symbols), quiet_copies():
        files: Any = compile_fx_aot(copy, inputs, config_patches=patches)
        return [file for file in files if isinstance(file, str)], size_guards(symbols)


@contextmanager
def quiet_copies() -> Iterator[None]:
    """Leave out the warning that torch gives when it copies a deprecated class of its own, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


@contextmanager
def alone(
    module: fx.GraphModule, sizes: Sequence[tuple[Any, int]] = ()
) -> Iterator[tuple[fx.GraphModule, list[Any], dict[str, torch.SymInt | int]]]:
    """Copy a graph and give its inputs and dynamic sizes, under a fresh fake mode and tracing context.

    Sharing those with other graphs gives kernels with dynamic shapes and unstable cache keys.

    Args:
        module: The graph.
        sizes: See ``inductor_compile_symbolic``.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shape_env = ShapeEnv()
    fake_mode = FakeTensorMode(shape_env=shape_env)
    new = {name: _new_size(shape_env, name, hint) for name, (_, hint) in zip(_names(sizes), sizes, strict=True)}
    names = SizeNames((whole, value) for (whole, _), value in zip(sizes, new.values(), strict=True))

    def fake(node: fx.Node) -> Any:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return names(value)
        layout = [list(map(names, entry)) for entry in (value.shape, value.stride())]
        return torch.empty_strided(*layout, dtype=value.dtype, device=value.device)

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
        yield copy, inputs, new


def _new_size(shape_env: Any, name: str, hint: int) -> torch.SymInt | int:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    if hint < 2:
        return hint
    source = ConstantSource(f"__{name}")
    symbol = shape_env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    size: torch.SymInt = shape_env.create_symintnode(symbol, hint=hint, source=source)
    return size


def open_subgraph(package: str, name: str) -> Compiled:
    """Load the model of this name in an AOTInductor package, a .pt2 file, without Dynamo and Inductor."""
    loader = torch._C._aoti.AOTIModelPackageLoader(package, name, False, 1, -1)
    run: Callable[[list[torch.Tensor]], list[torch.Tensor]] = loader.boxed_run
    return lambda *inputs: run(list(inputs))


def plain_inductor(module: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph as ``torch.compile`` does by default."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Callable[..., Any] = compile_fx(module, list(inputs), config_patches=options or None)  # type: ignore[assignment]
    return compiled


def mode_options(mode: str | None) -> dict[str, Any]:
    """Return Inductor's settings for a ``torch.compile`` mode."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode)) if mode else {}


def inductor_options() -> list[str]:
    """Return the names of all settings Inductor takes."""
    from torch._inductor import list_options

    return list(list_options())
