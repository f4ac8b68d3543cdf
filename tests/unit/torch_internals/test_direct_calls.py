"""Inductor's code called without torch's wrappers, where these would do nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from tracing import graph_of

from soda_compile.torch_internals import inductor_patches
from soda_compile.torch_internals.inductor import inductor_compile


def is_direct(function: Callable[..., Any]) -> bool:
    return type(function).__name__ == "_DirectCall"


def test_what_inductor_gives_is_called_directly_also_from_its_cache():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    for _ in range(2):
        compiled = inductor_compile(graph_of(lambda x, y: (x + y, (x * y).view(12)), x, y), {})
        assert is_direct(compiled)
        for _ in range(3):  # the first call goes through torch
            total, product = compiled(x, y)
            torch.testing.assert_close(total, x + y)
            torch.testing.assert_close(product, (x * y).view(12))


@pytest.mark.parametrize(
    "function", [lambda x: (x.view(12), x + 1), lambda x: (x[1:], x * 2)], ids=["whole input", "part of an input"]
)
def test_outputs_that_alias_an_input_pass_through_torch(function: Callable[..., Any]):
    x = torch.randn(3, 4)
    compiled = inductor_compile(graph_of(function, x), {})
    assert not is_direct(compiled)
    for got, wanted in zip(compiled(x), function(x), strict=True):
        torch.testing.assert_close(got, wanted)
    assert compiled(x)[0].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_operators_of_others_pass_through_torch():
    @torch.library.custom_op("soda_tests::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    double.register_fake(torch.empty_like)
    x = torch.randn(3, 4)
    compiled = inductor_compile(graph_of(lambda x: (torch.ops.soda_tests.double(x),), x), {})
    assert not is_direct(compiled)
    torch.testing.assert_close(compiled(x)[0], x * 2)


def test_a_torch_that_hides_its_code_is_served_by_its_wrapper(monkeypatch: pytest.MonkeyPatch):
    from contextlib import nullcontext

    monkeypatch.setattr(inductor_patches, "_generated_code", lambda: nullcontext([]))
    x = torch.randn(3, 4)
    compiled = inductor_compile(graph_of(lambda x: (x.sin(),), x), {})
    assert not is_direct(compiled)
    torch.testing.assert_close(compiled(x)[0], x.sin())


def test_profiles_show_the_call():
    x = torch.randn(3, 4)
    compiled = inductor_compile(graph_of(lambda x: (x.cos(),), x), {})
    compiled(x)
    with torch.profiler.profile() as profiler:
        compiled(x)
    assert any("CompiledFxGraph" in event.name for event in profiler.events())


def test_sizes_that_depend_on_data_leave_nothing_behind():
    """A result that may be an input is looked for by running the graph, which must not disturb its compilation."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[(x[:, 0] > 0).nonzero().squeeze(1)].sum(0), x.view(12)

    x = torch.randn(3, 4)
    for got, wanted in zip(inductor_compile(graph_of(function, x), {})(x), function(x), strict=True):
        torch.testing.assert_close(got, wanted)
