"""Graphs of denoisers of true size for a GPU: captured from weights on the meta device, which hold no memory."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from benchmarks.cuda_codegen.deepening import deepened
from benchmarks.suite.configs import Config
from benchmarks.suite.models import make_inputs, make_model
from soda_compile.capture.model import capture_graph
from soda_compile.compiler.analyse import analyse
from soda_compile.ir.captured import Captured
from soda_compile.ir.structure import Structure

CUDA = torch.device("cuda", 0)


CAPTURED = 4
"""Layers of each list that are captured; the others are equal to one of them."""
LISTS = {"num_single_layers": "single_transformer_blocks"}
"""The list whose layers an argument of a model counts, where that is not the first."""


def deep_structure(config: Config) -> Structure:
    """The analysed denoiser with all its layers, from a capture of a few."""
    counts = layer_counts(config)
    few = {name: min(count, CAPTURED) for name, count in counts.items()}
    structure = structure_on_gpu(replace(config, arguments={**config.arguments, **few}))
    paths = (name.split(".") for name in structure.region_names)
    first = next(path[0] for path in paths if path[1].isdigit())  # others, as of a text refiner, lie deeper
    return deepened(structure, {LISTS.get(name, first): count for name, count in counts.items()})


def layer_counts(config: Config) -> dict[str, int]:
    """Number of layers of the denoiser, by argument of its class."""
    own = {name: config.arguments.get(name) for name in ("num_layers", "num_single_layers")}
    return {name: count for name, count in own.items() if count is not None}


def structure_on_gpu(config: Config, dtype: torch.dtype = torch.bfloat16) -> Structure:
    """The analysed denoiser as Dynamo would hand it over on a GPU."""
    model = make_model(config, "meta", dtype)
    (inputs,) = make_inputs(config, "meta", dtype, 1)
    found: list[Captured] = []

    def backend(module: fx.GraphModule, examples: list[Any]) -> Any:
        captured = capture_graph(module, examples)
        if captured is not None:
            found.append(moved(captured, CUDA))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(**inputs)
    (captured,) = found
    return analyse(captured)


def moved(captured: Captured, device: torch.device) -> Captured:
    """The graph with all its tensors on another device; those of the CPU that hold no data stay where they are."""
    mode = FakeTensorMode()

    def there(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            with mode:
                place = device if value.device.type == "meta" else value.device
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=place)
        return value

    def argument(value: Any) -> Any:
        return device if isinstance(value, torch.device) and value.type == "meta" else value

    for node in captured.graph.nodes:
        node.meta["val"] = tree_map(there, node.meta.get("val"))
        node.args, node.kwargs = tree_map(argument, node.args), tree_map(argument, node.kwargs)
    return replace(captured, constants={name: there(value) for name, value in captured.constants.items()})
