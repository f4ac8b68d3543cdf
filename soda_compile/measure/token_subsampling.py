"""Which tokens of a value are looked at where memory is short."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from soda_compile.analysis.token_axes import token_axis

# Tokens of one row are ranked against each other at rates in eighths, so rows are thinned before fewer are left.
_FEWEST_TOKENS = 8


def thin(value: torch.Tensor, rows: int, stride: int) -> torch.Tensor:
    """About one token in ``stride``, a view [rows, groups, tokens, features] of the value.

    Args:
        value: [rows * groups, tokens, features], such as the frames of ``rows`` videos; of any other rank, all axes
            between the rows and the last one count as tokens of one group.
        rows: Samples in the batch.
        stride: 1 keeps everything.
    """
    groups, tokens, features = _layout(value.shape, rows)
    every_group, every_token = _strides(groups, tokens, stride)
    return value.reshape(rows, groups, tokens, features)[:, ::every_group, ::every_token]


def thinned_size(shape: Sequence[int], rows: int, stride: int) -> int:
    """Elements that ``thin`` keeps of a value of this shape."""
    groups, tokens, features = _layout(shape, rows)
    every_group, every_token = _strides(groups, tokens, stride)
    return rows * math.ceil(groups / every_group) * math.ceil(tokens / every_token) * features


def _layout(shape: Sequence[int], rows: int) -> tuple[int, int, int]:
    """Groups, tokens and features of each row."""
    if token_axis(shape) is None:
        return 1, math.prod(shape[:-1]) // rows, shape[-1]
    return shape[0] // rows, shape[1], shape[2]


def _strides(groups: int, tokens: int, stride: int) -> tuple[int, int]:
    """Strides over groups and tokens, together about ``stride``: over tokens only, as long as enough of them remain."""
    every_token = min(stride, max(1, tokens // _FEWEST_TOKENS))
    every_group = min(math.ceil(stride / every_token), groups)
    return every_group, math.ceil(stride / every_group)
