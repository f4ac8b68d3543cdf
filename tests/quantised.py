"""A minimal quantised weight: a tensor subclass around plain tensors, as torchao's are."""

from typing import Any

import torch
from torch import Tensor, nn


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


def quantise(model: nn.Module) -> nn.Module:
    """Wraps the weights of all linear layers, in place."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            values, scale = (layer.weight * 50).to(torch.int8), torch.tensor(0.02)
            layer.weight = nn.Parameter(Quantised(values, scale), requires_grad=False)
    return model
