"""Graphs over weights that wrap plain tensors, here a minimal quantised weight."""

from typing import Any

import torch
from torch import Tensor

from soda_compile.capture.normalisation import capture
from soda_compile.capture.unwrapping import unwrap_inputs
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs, has_wrapped


class Quantised(torch.Tensor):
    """int8 values and a scale that stand for their product."""

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> "Quantised":
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype, device=values.device)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values_, self.scale = values, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values_", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "Quantised":
        return Quantised(inner["values_"], inner["scale"])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.nn.functional.linear:
            hidden, weight, *rest = arguments
            return function(hidden, weight.values_ * weight.scale, *rest)
        return super().__torch_function__(function, types, arguments, options or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return Quantised(arguments[0].values_, arguments[0].scale)
        raise NotImplementedError(function)


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
