"""The tokens of a value that are looked at where memory is short."""

import math
from collections.abc import Sequence

import torch

from soda_compile.analysis.token_axes import token_axis

# Tokens of one frame are ranked against each other at rates in eighths, so frames are left out before fewer are left.
_FEWEST_TOKENS = 8


def subsample_tokens(value: torch.Tensor, samples: int, stride: int) -> torch.Tensor:
    """Return about one token in ``stride``, a view [samples, frames, tokens, features] of the value.

    Args:
        value: [samples * frames, tokens, features], such as the frames of ``samples`` videos; of any other rank, all
            axes between the samples and the last one count as tokens of one frame.
        samples: Samples in the batch.
        stride: 1 keeps everything.
    """
    frames, tokens, features = _layout(value.shape, samples)
    every_frame, every_token = _strides(frames, tokens, stride)
    return value.reshape(samples, frames, tokens, features)[:, ::every_frame, ::every_token]


def subsampled_size(shape: Sequence[int], samples: int, stride: int) -> int:
    """Return the number of elements that ``subsample_tokens`` keeps of a value of this shape."""
    frames, tokens, features = _layout(shape, samples)
    every_frame, every_token = _strides(frames, tokens, stride)
    return samples * math.ceil(frames / every_frame) * math.ceil(tokens / every_token) * features


def _layout(shape: Sequence[int], samples: int) -> tuple[int, int, int]:
    """Return frames, tokens and features of each sample."""
    if token_axis(shape) is None:
        return 1, math.prod(shape[:-1]) // samples, shape[-1]
    return shape[0] // samples, shape[1], shape[2]


def _strides(frames: int, tokens: int, stride: int) -> tuple[int, int]:
    """Return strides over frames and tokens of product ``stride`` or so, over tokens only while enough remain."""
    every_token = min(stride, max(1, tokens // _FEWEST_TOKENS))
    every_frame = min(math.ceil(stride / every_token), frames)
    return every_frame, math.ceil(stride / every_frame)
