"""Conditioning ahead of the steps at sizes that Dynamo makes symbolic."""

from typing import Any

import pytest
import sympy  # type: ignore[import-untyped]
import torch
from conditioned import STEPS, assert_close, compiled_with, generate, knowing_timesteps, subject
from thorough import gated
from torch import Tensor, fx, nn

import soda_compile
from soda_compile.torch_internals import stacking


def repeated(calls: list[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    """Return the calls with each sample so many times."""
    samples = len(calls[0]["timestep"])

    def more(value: Any) -> Any:
        return torch.cat([value] * times) if isinstance(value, Tensor) and len(value) == samples else value

    return [{name: more(value) for name, value in call.items()} for call in calls]


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch cannot batch a product of symbolic sizes")
@pytest.mark.parametrize("name", gated("dit", others=["flux", "pixart", "sd3"]))
def test_any_number_of_samples(name: str, eager: None, ahead: list[int]):
    model, calls, plan = subject(name)
    plan = knowing_timesteps(plan, calls)
    batches = {times: repeated(calls, times) for times in (1, 2, 3)}
    expected = {times: generate(model, compiled_with(model, plan, "step"), run) for times, run in batches.items()}
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=None)
    (before,) = soda_compile.stats(model).values()
    for times in (1, 2, 3, 1):
        ahead.clear()
        assert_close(generate(model, compiled, batches[times]), expected[times])
        assert ahead == list(range(STEPS))
    (counted,) = soda_compile.stats(model).values()
    assert (counted["compilations"] - before["compilations"], counted["misses"]) == (2, {})


@pytest.mark.thorough
def test_memory_is_that_of_the_samples(eager: None, ahead: list[int]):
    peaks = {}
    for dynamic in (False, True):
        model, calls, plan = subject()
        torch._dynamo.reset()
        options = {"plan": knowing_timesteps(plan, calls)}
        compiled = torch.compile(model, backend="soda", options=options, dynamic=dynamic)
        if dynamic:
            generate(model, compiled, calls)
        generate(model, compiled, repeated(calls, 3))
        (counted,) = soda_compile.stats(model).values()
        peaks[dynamic] = counted["slot_bytes_peak"]
    assert peaks[True] == peaks[False] > 0


@pytest.mark.thorough
def test_a_graph_that_would_hold_at_one_size_only_is_not_taken(eager: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stacking, "_cat", torch.ops.aten.cat.default)  # takes the size as a number
    model, calls, plan = subject()
    plan = knowing_timesteps(plan, calls)
    expected = generate(model, compiled_with(model, plan, "step"), repeated(calls, 3))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, dynamic=True)
    generate(model, compiled, calls)
    assert_close(generate(model, compiled, repeated(calls, 3)), expected)


def test_a_size_of_one_in_the_example_is_a_number_too():
    graph = fx.Graph()
    for name, value in {"x": torch.empty(2, 1), "size": 1}.items():
        graph.placeholder(name).meta["val"] = value
    x, _ = graph.nodes
    graph.output((graph.call_function(torch.ops.aten.silu.default, (x,)),))
    module = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(RuntimeError, match=r"it would hold only where s0//2 is 1"):
        stacking.add_axis(module, 3, [True, False], [(sympy.Symbol("s0//2"), 1)])
