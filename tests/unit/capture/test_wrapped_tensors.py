"""Graphs over weights that wrap plain tensors, here a minimal quantised weight."""

from typing import Any

import torch
from quantised import Quantised
from torch import Tensor

from soda_compile.capture.normalisation import capture
from soda_compile.capture.unwrapping import unwrap_inputs
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.nn.Linear(4, 4)
        self.linear = torch.nn.Linear(4, 3, bias=False)
        values = torch.randint(-9, 9, (3, 4), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
        self.linear.weight = torch.nn.Parameter(Quantised(values, torch.tensor(0.1)), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(self.plain(hidden))


def test_the_graph_over_plain_tensors_does_the_same_and_names_them() -> None:
    model, hidden = Model(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    seen: list[Any] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        assert has_wrapped(inputs)
        plain, leaves = unwrap_inputs(module, inputs)
        assert not has_wrapped(leaves)
        captured = capture(plain, leaves)
        seen.append(captured)
        return lambda *real: plain(*flatten_inputs(real))

    with torch.no_grad():
        result = torch.compile(model, backend=backend, fullgraph=True)(hidden)
        torch.testing.assert_close(result, model(hidden))
    (captured,) = seen
    assert [path for path in captured.paths if path.startswith("linear")] == [
        "linear.weight.values_",
        "linear.weight.scale",
    ]
    flags = dict(zip(captured.paths, captured.parameters, strict=True))
    assert flags["linear.weight.values_"]
    assert flags["linear.weight.scale"]
    dtypes = [node.meta["val"].dtype for node in captured.graph.nodes if node.op == "placeholder"]
    assert torch.int8 in dtypes


def test_plain_inputs_stay() -> None:
    tensors = [torch.ones(2), 3, None]
    assert not has_wrapped(tensors)
    assert all(a is b for a, b in zip(flatten_inputs(tensors), tensors, strict=True))
