"""Graphs over tensors that are sharded over processes (DTensor), as graphs over the shards of this process.

What a sharded tensor does is known below autograd alone, so AOTAutograd traces it there: operators of each process on
its shards, and the collectives between them.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.tracing import source_name
from soda_compile.torch_internals.wrapped_tensors import plain_tensors

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]


def has_sharded(inputs: Sequence[Any]) -> bool:
    """Return whether an input is sharded over processes."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in inputs)


def over_shards(module: fx.GraphModule, inputs: Sequence[Any], compile_local: Compile) -> Callable[..., Any]:
    """Compile the graph that runs in this process, on its shards.

    Args:
        module: Graph from Dynamo, some of whose inputs are sharded.
        inputs: Its example inputs.
        compile_local: Compiles a graph over plain tensors. Its inputs are those of ``module`` with the shards in place
            of sharded tensors, and say where they come from.
    """
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    placeholders = module.graph.find_nodes(op="placeholder")
    sources = [
        source_name(node) or node.name
        for node, value in zip(placeholders, inputs, strict=True)
        for _ in plain_tensors(value)
    ]

    def compile_inference(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        graph, local = gm, example_inputs
        nodes = graph.graph.find_nodes(op="placeholder")
        for node, source, value in zip(nodes, sources, local, strict=True):
            node.meta["grapharg"] = SimpleNamespace(source=SimpleNamespace(name=source))
            if not isinstance(value, torch.Tensor) and not node.users:  # the mesh of a sharded tensor
                graph.graph.erase_node(node)
        kept = [index for index, node in enumerate(nodes) if not node._erased]
        graph.recompile()
        with unset_fake_temporarily():  # as where Dynamo calls a backend
            run = compile_local(graph, [local[index] for index in kept])
        return make_boxed_func(lambda *values: run(*(values[index] for index in kept)))

    with torch.no_grad():
        return aot_module_simplified(
            module, inputs, fw_compiler=compile_inference, inference_compiler=compile_inference
        )
