"""Which tokens are kept where memory is short."""

import math

import pytest
import torch

from soda_compile.measure.token_subsampling import subsample_tokens, subsampled_size

SHAPES = {
    "tokens": ((2, 100, 3), 2),
    "frames": ((2 * 6, 100, 3), 2),
    "tokens of frames": ((2 * 100, 6, 3), 2),
    "one sample": ((6, 100, 3), 1),
    "heads": ((2, 4, 100, 3), 2),
    "no tokens": ((2, 3), 2),
}
CASES = [pytest.param(*case, id=name) for name, case in SHAPES.items()]


@pytest.mark.parametrize(("shape", "rows"), CASES)
def test_nothing_is_left_out_at_stride_one(shape: tuple[int, ...], rows: int):
    value = torch.randn(shape)
    torch.testing.assert_close(subsample_tokens(value, rows, 1).flatten(), value.flatten(), rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "rows"), CASES)
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 50, 10**9])
def test_the_size_is_foretold_and_about_one_in_stride(shape: tuple[int, ...], rows: int, stride: int):
    kept = subsample_tokens(torch.randn(shape), rows, stride)
    assert kept.shape[0] == rows
    assert kept.numel() == subsampled_size(shape, rows, stride)
    tokens = math.prod(shape[:-1]) // rows
    assert 1 <= kept.shape[1:3].numel() <= max(1, 2 * tokens / stride)


def test_tokens_are_left_out_first_and_groups_once_few_tokens_remain():
    assert subsample_tokens(torch.randn(2 * 6, 100, 3), 2, 10).shape == (2, 6, 10, 3)
    assert subsample_tokens(torch.randn(2 * 6, 100, 3), 2, 24).shape == (2, 3, 9, 3)
    assert subsample_tokens(torch.randn(2 * 100, 6, 3), 2, 10).shape == (2, 10, 6, 3)


def test_the_same_tokens_of_every_row_are_kept():
    value = torch.arange(20.0).reshape(2, 10, 1).expand(2, 10, 4)
    assert subsample_tokens(value, 2, 4)[..., 0].tolist() == [[[0.0, 4.0, 8.0]], [[10.0, 14.0, 18.0]]]
