"""From Dynamo's graph to the one IR of the compiler: functional pre-dispatch ATen with module paths."""

import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from soda_compile.capture.capture_cache import capture_key, load_capture, store_capture
from soda_compile.capture.higher_order import bind_operators
from soda_compile.capture.scalars import keep_floats
from soda_compile.capture.sources import clean_path, root_of
from soda_compile.errors import CaptureError
from soda_compile.ir.captured import Captured
from soda_compile.torch_internals.size_expressions import inline_sizes
from soda_compile.torch_internals.symbolic_export import SymbolicExport, adopt, export_symbolic
from soda_compile.torch_internals.tracing import known_float, refake, source_name, specialised

aten = torch.ops.aten


def capture(module: fx.GraphModule, inputs: Sequence[Any], *, symbolic: bool = False) -> Captured:
    """Normalise a graph from Dynamo over plain tensors, or read what it gave in an earlier process.

    Args:
        module: The graph.
        inputs: Its example inputs.
        symbolic: Whether sizes that Dynamo made symbolic stay so; inputs are of fixed sizes then, and the tracing
            context becomes that of the captured graph. Otherwise they become static.

    Raises:
        CaptureError: If the graph changes its inputs in place or cannot be exported.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    parameters = tuple(_belongs_to_model(node, value) for node, value in zip(placeholders, inputs, strict=True))
    root = root_of(source_name(node) for node, mine in zip(placeholders, parameters, strict=True) if mine)
    sources = [clean_path(source_name(node) or node.name, root) for node in placeholders]
    _write_plainly(module)
    keep_floats(module)
    _fix_floats(module, of_sizes=not symbolic)
    if symbolic:
        with _failures_named():
            exported = export_symbolic(module, inputs, DECOMPOSITIONS)
        return _with_sizes(exported, sources, parameters, root)
    with specialised(inputs) as static:
        key = capture_key(module, static, parameters)
    captured = load_capture(key)
    if captured is None:
        with _failures_named(), specialised(inputs) as static:
            program = torch.export.export(module, static, strict=False).run_decompositions(DECOMPOSITIONS)
        captured = _normalise(program, sources, parameters, root)
        store_capture(key, captured)
    return captured


@contextmanager
def _failures_named() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.export uses deprecated parts of torch itself
            yield
    except Exception as error:
        raise CaptureError(
            f"torch.export could not normalise the denoiser's graph: {type(error).__name__}: {error}. "
            "Compile the model with backend='inductor' instead, or change the operation it names."
        ) from error


def _with_sizes(
    exported: SymbolicExport,
    sources: Sequence[str],
    parameters: tuple[bool, ...],
    root: str,
) -> Captured:
    """Normalise a graph with symbolic sizes; inputs that are numbers have names, and nothing reads them."""
    sizes = adopt(exported)
    taken = [position for position in exported.positions if position >= 0]
    carriers = [f"size of {number}" for number in range(len(exported.carried))]
    captured = _normalise(
        exported.program,
        [*(sources[position] for position in taken), *carriers],
        (*(parameters[position] for position in taken), *(False for _ in carriers)),
        root,
    )
    by_position = dict(zip(taken, captured.inputs, strict=False))
    inputs = tuple(by_position.get(position, f"number {position}") for position in range(len(sources)))
    return replace(captured, inputs=inputs, paths=tuple(sources), parameters=parameters, sizes=sizes)


def _normalise(
    exported: torch.export.ExportedProgram, sources: Sequence[str], parameters: tuple[bool, ...], root: str
) -> Captured:
    signature = exported.graph_signature
    _refuse_mutation(signature, dict(zip(signature.user_inputs, sources, strict=True)))
    graph = exported.graph_module.graph
    arguments = [spec for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    constants = {
        spec.arg.name: _constant(exported, spec.target)
        for spec in signature.input_specs
        if spec.kind != InputKind.USER_INPUT
    }
    _clean(graph, root)
    outputs = tuple(_output_name(value) for value in next(iter(reversed(graph.nodes))).args[0])
    names = _name_inputs(graph, [spec.arg.name for spec in arguments], sources, parameters)
    constants = {names.get(name, name): value for name, value in constants.items()}
    return Captured(
        graph=graph,
        inputs=tuple(names.get(spec.arg.name, spec.arg.name) for spec in arguments),
        paths=tuple(sources),
        parameters=parameters,
        constants=constants,
        outputs=tuple(names.get(name, name) if name else None for name in outputs),
    )


def _addcmul(carry: torch.Tensor, gate: torch.Tensor, branch: torch.Tensor, *, value: float = 1) -> torch.Tensor:
    """Return a fused gate and residual add as the two operations that it is."""
    product = gate * branch
    return carry + (product if value == 1 else value * product)


DECOMPOSITIONS = {aten.addcmul.default: _addcmul}


def _write_plainly(module: fx.GraphModule) -> None:
    """Write what export cannot follow as the same in other operators."""
    for node in module.graph.nodes:
        if getattr(node.target, "__name__", "") == "_get_data_attr":  # x.data
            node.target = torch.detach
        elif node.op == "call_method" and node.target == "fill_diagonal_" and _is_matrix(node.args[0]):
            _fill_diagonal(module.graph, node)
    module.recompile()


def _is_matrix(node: Any) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, torch.Tensor) and value.ndim == 2


def _fill_diagonal(graph: fx.Graph, node: fx.Node) -> None:
    """Fill a view of the diagonal; the operator itself takes a stride of its own, which views of views do not bear."""
    matrix: Any = node.args[0]
    if len(node.args) != 2 or node.kwargs:  # wraps, or names its value
        return
    with graph.inserting_before(node):
        diagonal = graph.call_function(torch.diagonal, (matrix,))
        graph.call_method("fill_", (diagonal, node.args[1]))
    node.replace_all_uses_with(matrix)
    graph.erase_node(node)


def _fix_floats(module: fx.GraphModule, *, of_sizes: bool) -> None:
    """Put numbers for floats that Dynamo made symbolic (the epsilon of a norm, under ``dynamic=True``)."""
    numbers = {node: known_float(node.meta.get("example_value"), of_sizes=of_sizes) for node in module.graph.nodes}
    fixed = {node: number for node, number in numbers.items() if number is not None and node.op != "placeholder"}

    def put(source: fx.Node) -> Any:
        return fixed.get(source, source)

    for node in module.graph.nodes:
        node.args, node.kwargs = fx.map_arg(node.args, put), fx.map_arg(node.kwargs, put)
    for node in reversed(fixed):
        module.graph.erase_node(node)
    if fixed:
        module.recompile()


def _belongs_to_model(placeholder: fx.Node, value: Any) -> bool:
    if isinstance(value, torch.nn.Parameter):
        return True
    source = source_name(placeholder)
    return re.search(r"\b_(?:parameters|buffers)\b", source) is not None


def _refuse_mutation(signature: torch.export.graph_signature.ExportGraphSignature, paths: Mapping[Any, str]) -> None:
    for spec in signature.output_specs:
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.TOKEN):
            changed = paths.get(spec.target, spec.target or spec.arg.name)
            raise CaptureError(
                f"the denoiser changes {changed} in place ({spec.kind.name.lower()}); "
                "a cached step would not repeat that. Make forward return the new value instead."
            )


def _constant(exported: torch.export.ExportedProgram, target: str | None) -> torch.Tensor:
    store = exported.constants if target in exported.constants else exported.state_dict
    value = store[target]
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"the denoiser holds {target} of type {type(value).__name__}; only tensors can be lifted")
    return value.detach()


def _output_name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, fx.Node):
        raise CaptureError(f"the denoiser returns {value!r}; only tensors and None can be returned")
    return value.name


def _clean(graph: fx.Graph, root: str) -> None:
    """Drop export's checks, put every getitem right after its producer, and note the module path."""
    for node in list(graph.nodes):
        if node.target in (aten._assert_tensor_metadata.default, aten._assert_scalar.default):
            graph.erase_node(node)
    bind_operators(graph)
    inline_sizes(graph)
    for node in list(graph.nodes):
        if node.target is operator.getitem:
            node.args[0].append(node)
    for node in graph.nodes:
        node.meta["val"] = refake(node.meta.get("val"))
        modules = [frame[:2] for frame in (node.meta.get("nn_module_stack") or {}).values()]  # outermost first
        node.meta["paths"] = tuple(clean_path(str(path), root) for path, _ in modules)
        node.meta["classes"] = tuple(str(getattr(kind, "__qualname__", kind)) for _, kind in modules)
    graph.eliminate_dead_code()
    graph.lint()


def _name_inputs(
    graph: fx.Graph, names: Sequence[str], paths: Sequence[str], parameters: Sequence[bool]
) -> dict[str, str]:
    """Rename placeholders after what they hold; return the new names by old name."""
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    renamed: dict[str, str] = {}
    for name, path, parameter in zip(names, paths, parameters, strict=True):
        node = nodes[name]
        wanted = re.sub(r"\W+", "_", path).strip("_")
        node._rename(("p_" if parameter else "") + wanted)
        node.target = node.name
        renamed[name] = node.name
    return renamed
