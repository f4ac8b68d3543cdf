"""Runs Inductor's Triton kernels on the CPU, in Triton's interpreter, where a GPU would launch them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

_INTERPRETED = interpreter._convert_float


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _rsqrt(x):  # type: ignore[no-untyped-def]
    return tl.rsqrt(x)


@triton.jit
def _sqrt(x):  # type: ignore[no-untyped-def]
    return tl.sqrt(x)


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    return tl.exp(x)


@triton.jit
def _exp2(x):  # type: ignore[no-untyped-def]
    return tl.exp2(x)


@triton.jit
def _log(x):  # type: ignore[no-untyped-def]
    return tl.log(x)


@triton.jit
def _sin(x):  # type: ignore[no-untyped-def]
    return tl.sin(x)


@triton.jit
def _cos(x):  # type: ignore[no-untyped-def]
    return tl.cos(x)


@triton.jit
def _abs(x):  # type: ignore[no-untyped-def]
    return tl.abs(x)


@triton.jit
def _erf(x):  # type: ignore[no-untyped-def]
    return tl.erf(x)


@triton.jit
def _floor(x):  # type: ignore[no-untyped-def]
    return tl.floor(x)


@triton.jit
def _pow(x, y):  # type: ignore[no-untyped-def]
    return tl.exp2(y * tl.log2(x))  # of positive numbers: frequencies of rotary embeddings


@triton.jit
def _nearbyint(x):  # type: ignore[no-untyped-def]
    # To even: adding and taking away what leaves no bits for a fraction, as far as there are any.
    rounded = tl.abs(x) + 8388608.0 - 8388608.0
    return tl.where(tl.abs(x) < 8388608.0, tl.where(x < 0, -rounded, rounded), x)


LIBDEVICE = SimpleNamespace(
    tanh=_tanh, rsqrt=_rsqrt, sqrt=_sqrt, exp=_exp, exp2=_exp2, log=_log, sin=_sin, cos=_cos, abs=_abs, erf=_erf,
    floor=_floor, pow=_pow, nearbyint=_nearbyint,
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
        stack.enter_context(mock.patch.object(interpreter, "_convert_float", _convert_float))
        for target, replacement in replacements.items():
            stack.enter_context(mock.patch(target, replacement))
        library = torch.library.Library("aten", "IMPL")
        stack.callback(library._destroy)
        library.impl("_scaled_dot_product_efficient_attention", _attention, "CPU")
        yield


def _convert_float(values: Any, source: Any, wanted: Any, rounding: Any) -> Any:
    """Round to float8 as a GPU does: the interpreter loses what rounding carries into the exponent (127 becomes 64)."""
    if (source, wanted) == (tl.float32, tl.float8e4nv):
        exact = torch.from_numpy(values.view(np.float32).copy())
        return exact.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return _INTERPRETED(values, source, wanted, rounding)


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
