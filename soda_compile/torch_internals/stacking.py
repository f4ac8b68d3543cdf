"""A graph that is computed for many values of its inputs at once. Checked with torch 2.13."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from soda_compile.torch_internals.inductor import alone
from soda_compile.torch_internals.tracing import fake_mode_of, size_guards


def add_axis(
    module: fx.GraphModule, size: int, batched: Sequence[bool], sizes: Sequence[tuple[Any, int]] = ()
) -> fx.GraphModule:
    """Return the graph over one more axis, the first of its outputs and of those inputs that are batched.

    Args:
        module: The graph.
        size: That of the new axis.
        batched: For each input whether it has the axis.
        sizes: See ``inductor_compile_symbolic``.

    Raises:
        RuntimeError: If an operator can only be repeated for each entry, or takes a symbolic size as a number.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    functorch: Any = torch._C._functorch
    repeats = functorch._is_vmap_fallback_enabled()
    with alone(module, sizes) as (copy, inputs, symbols), fake_mode_of(inputs), torch.inference_mode(False):
        for node in copy.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
            node.target = _cat
        copy.recompile()
        stacked = [
            torch.empty((size, *value.shape), dtype=value.dtype, device=value.device) if batch else value
            for value, batch in zip(inputs, batched, strict=True)
        ]
        over_all = torch.func.vmap(copy, in_dims=tuple(0 if one else None for one in batched))
        functorch._set_vmap_fallback_enabled(False)
        try:
            with torch.autocast(inputs[0].device.type, enabled=False), torch.no_grad():  # casts are in the graph
                made = make_fx(over_all)(*stacked)
        finally:
            functorch._set_vmap_fallback_enabled(repeats)
        numbers = [f"{whole} is {hint}" for whole, hint in sizes if hint < 2]  # which torch knows no symbols for
        if conditions := [*numbers, *map(str, size_guards(symbols).conditions)]:
            raise RuntimeError(f"it would hold only where {', '.join(conditions)}")
        return made


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    joined: torch.Tensor = _Cat.apply(dim, *tensors)  # type: ignore[no-untyped-call]
    return joined


class _Cat(torch.autograd.Function):
    """``torch.cat``, whose own rule for a further axis takes symbolic sizes as numbers."""

    @staticmethod
    def forward(dim: int, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat(tensors, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing: there is no backward."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], dim: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Join the tensors behind the further axis, which those without it get."""
        stacked = [
            tensor.expand(info.batch_size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)
            for tensor, axis in zip(tensors, in_dims[1:], strict=True)
        ]
        return torch.cat(stacked, dim if dim < 0 else dim + 1), 0
