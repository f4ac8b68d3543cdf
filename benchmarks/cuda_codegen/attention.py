"""The attention kernels that torch picks on a GPU, picked without asking the driver."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

aten = torch.ops.aten


@contextmanager
def fused_attention() -> Iterator[None]:
    """Decompose attention into what a GPU runs: flash attention, or memory-efficient attention under a mask."""
    operator: Any = aten.scaled_dot_product_attention.default
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    with mock.patch.dict(operator.py_kernels, {key: _attention}):
        operator._dispatch_cache.clear()
        try:
            yield
        finally:
            operator._dispatch_cache.clear()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return _flash(query, key, value, is_causal, scale)
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    result: Tensor = aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, False, dropout_p, is_causal, scale=scale
    )[0]
    return result


def _flash(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    """Flash attention takes heads of a multiple of eight features; torch pads others, as here."""
    width = query.shape[-1]
    padded = [torch.nn.functional.pad(each, (0, -width % 8)) if width % 8 else each for each in (query, key, value)]
    scale = 1 / math.sqrt(width) if scale is None else scale
    result: Tensor = aten._scaled_dot_product_flash_attention.default(*padded, 0.0, is_causal, False, scale=scale)[0]
    return result[..., :width] if width % 8 else result


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as torch hands it to the kernel: added to the scores, rows aligned to sixteen entries."""
    if mask.dtype == torch.bool:
        zeros = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, zeros, float("-inf"))
    tokens = key.shape[-2]
    if tokens % 16:
        mask = torch.nn.functional.pad(mask, (0, -tokens % 16))[..., :tokens]
    return mask.expand(*query.shape[:-1], tokens)
