"""The C++ compiler at work while something else is done."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tracing import graph_of

from soda_compile.torch_internals.inductor import compiler_probed, inductor_compile
from soda_compile.torch_internals.inductor_patches import deferred_kernel_builds


class Instructions:
    """What Inductor asks whether the compiler can use them."""

    def __init__(self, flags: str, asked: list[str], fails: bool = False) -> None:
        self.flags, self.asked, self.fails = flags, asked, fails

    def __str__(self) -> str:
        return self.flags

    def __bool__(self) -> bool:
        self.asked.append(self.flags)
        if self.fails:
            raise RuntimeError("no compiler")
        return True


@pytest.mark.parametrize(("device", "wanted"), [("cpu", ["first", "first second"]), ("cuda", [])])
def test_only_what_the_processor_has_is_probed_and_only_for_it(
    device: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
):
    from torch._inductor import cpu_vec_isa

    asked: list[str] = []
    known = [
        Instructions("first", asked),
        Instructions("first second", asked, fails=True),
        Instructions("third", asked),
    ]
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", known)
    monkeypatch.setattr(cpu_vec_isa, "x86_isa_checker", lambda: ["first", "second"])
    with compiler_probed(torch.device(device)):
        pass
    assert sorted(asked) == wanted


def test_graphs_are_compiled_while_kernels_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    waited: list[Any] = []
    wait = AsyncCompile.wait
    monkeypatch.setattr(AsyncCompile, "wait", lambda compiler, scope: (waited.append(scope), wait(compiler, scope)))
    x = torch.randn(3, 5)
    with deferred_kernel_builds():
        first = inductor_compile(graph_of(lambda x: (x.sin() + 1,), x), {})
        second = inductor_compile(graph_of(lambda x: (x.cos() * 3,), x), {})
        assert not waited
    assert len(waited) == 2
    torch.testing.assert_close(first(x)[0], x.sin() + 1)
    torch.testing.assert_close(second(x)[0], x.cos() * 3)


def test_what_was_compiled_before_a_failure_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.randn(3, 5)
    compiled: list[Any] = []

    def fail() -> None:
        with deferred_kernel_builds():
            compiled.append(inductor_compile(graph_of(lambda x: (x.exp() + 2,), x), {}))
            raise RuntimeError("the next one cannot be compiled")

    with pytest.raises(RuntimeError, match="cannot be compiled"):
        fail()
    torch.testing.assert_close(compiled[0](x)[0], x.exp() + 2)
