"""The switch that leaves Inductor as it is."""

import package_tools as toy
import pytest
import torch
from tracing import graph_of

from soda_compile import OptionError
from soda_compile.torch_internals.inductor import inductor_compile
from soda_compile.torch_internals.inductor_patches import SWITCH, deferred_kernel_builds


def test_inductor_as_it_is_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    model, results = toy.Denoiser(), []
    for value in ("1", "0"):
        monkeypatch.setenv(SWITCH, value)
        torch.compiler.reset()
        results.append(toy.generate(toy.jit(model), toy.trajectory()))
    assert torch.equal(*results)


def test_the_switch_leaves_inductor_as_it_is(monkeypatch: pytest.MonkeyPatch):
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.output_code import CompiledFxGraph

    monkeypatch.setenv(SWITCH, "0")
    found = AsyncCompile.wait, CompiledFxGraph.post_compile
    x = torch.randn(3, 4)
    with deferred_kernel_builds():
        assert AsyncCompile.wait is found[0]
        compiled = inductor_compile(graph_of(lambda x: (x.tan(),), x), {})
    assert CompiledFxGraph.post_compile is found[1]
    assert type(compiled).__name__ != "_DirectCall"
    torch.testing.assert_close(compiled(x)[0], x.tan())


def test_other_values_of_the_switch_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(OptionError, match="SODA_COMPILE_PATCH_INDUCTOR is 'no'; set 0"), deferred_kernel_builds():
        pass
