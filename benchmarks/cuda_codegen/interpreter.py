"""Runs Inductor's Triton kernels on the CPU, in Triton's interpreter, where a GPU would launch them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _same(x):  # type: ignore[no-untyped-def]
    return x


LIBDEVICE = SimpleNamespace(
    tanh=_tanh, rsqrt=tl.rsqrt, sqrt=tl.sqrt, exp=tl.exp, exp2=tl.exp2, log=tl.log, sin=tl.sin, cos=tl.cos, abs=tl.abs,
    erf=tl.erf, floor=tl.floor, div_rn=tl.div_rn, sqrt_rn=tl.sqrt_rn,
)  # fmt: skip
"""Functions of CUDA's device library, in operations that the interpreter knows."""


@contextmanager
def kernels_interpreted() -> Iterator[None]:
    """Replace launches by the interpreter, and what generated code asks of the device by the CPU's."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    replacements = {
        "torch._C._cuda_getCurrentRawStream": lambda index: 0,
        "torch._C._dynamo.guards._empty_strided_cuda": _empty,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(CachingAutotuner, "run", _run))
        for target, replacement in replacements.items():
            stack.enter_context(mock.patch(target, replacement))
        library = torch.library.Library("aten", "IMPL")
        stack.callback(library._destroy)
        library.impl("_scaled_dot_product_efficient_attention", _attention, "CPU")
        yield


def _attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, logs: bool, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Memory-efficient attention, which the CPU does not have, in the layout that the GPU gives it."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-1, -2) * scale
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    result = (weights @ value).transpose(1, 2).contiguous().transpose(1, 2)
    return result, query.new_empty(*query.shape[:2], 0), torch.zeros((), dtype=torch.int64), torch.zeros(())


def _empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype)


def _run(tuner: Any, *args: Any, stream: Any = None, **kwargs: Any) -> None:
    """Interpret a kernel in its first configuration."""
    from torch._inductor.runtime.triton_heuristics import GridExpr

    config = tuner.configs[0]
    function = tuner.fn
    given = dict(zip(function.arg_names, args, strict=False)) | config.kwargs
    numbers = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
    grid = GridExpr.from_meta(tuner.inductor_meta, config, mode="python").eval_slow(numbers)
    function.fn.__globals__.update(libdevice=LIBDEVICE, tl_math=LIBDEVICE)
    blocks = {name: value for name, value in config.kwargs.items() if name in function.arg_names}
    function[grid](*args, **blocks)
