"""Recorded steps, with a capturer that keeps addresses as CUDA graphs do, on the CPU."""

import dataclasses
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, structure_of
from thorough import gated
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tracing import graphs_as_they_are, statistics

import soda_compile
from soda_compile.backend.options import check_options
from soda_compile.compiler.bind import prunable_regions
from soda_compile.plans.actions import COMPUTE, REUSE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.watched_region import WatchedRegion
from soda_compile.runtime import cuda_graphs
from soda_compile.runtime.slots import Slots


class Tape(TorchDispatchMode):
    """Notes every operator with the tensors it took and gave, and what tensors held before they were written."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.is_mutable and id(args[0]) not in self.made:
            self.before.setdefault(id(args[0]), (args[0], args[0].clone()))
        result = function(*args, **(kwargs or {}))
        self.made |= {id(leaf) for leaf in tree_leaves(result) if not any(leaf is given for given in args)}
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Runs the operators again on the same memory."""
        for function, args, kwargs, result in self.calls:
            aliases = any(returned.alias_info is not None for returned in function._schema.returns)
            again = function(*args, **kwargs) if not aliases or function._schema.is_mutable else result
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


class TapeCapturer:
    """Records by running once and undoing what was written, as capturing runs nothing."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.lock = threading.Lock()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            body()
        for tensor, before in tape.before.values():
            tensor.copy_(before)
        self.tapes.append(tape)
        return tape.replay


@pytest.fixture
def capturer(monkeypatch: pytest.MonkeyPatch) -> Iterator[TapeCapturer]:
    torch._dynamo.reset()
    made = TapeCapturer()
    graphs_as_they_are(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "capturer_for", lambda device: made)
    yield made
    torch._dynamo.reset()


def plan_for(name: str, score: Any = "random") -> Plan:
    """Anchors, reuses, forecasts and prunes, so that slots are written and read at many steps."""
    structure = structure_of(name)
    forecast = Action("forecast", 1)
    linear = (COMPUTE, COMPUTE, forecast, COMPUTE, forecast, forecast, COMPUTE, REUSE)
    half = (COMPUTE, prune(0.5), prune(0.5), COMPUTE, REUSE, prune(0.5), COMPUTE, REUSE)
    rows = tuple(
        half if prunable and number % 2 else linear for number, prunable in enumerate(prunable_regions(structure))
    )
    return Plan("", structure.region_names, rows, pruning=Pruning(score))


def trajectories(
    model: torch.nn.Module, plan: Plan, calls: list[dict[str, Any]], mode: str | None, **more: Any
) -> list[Any]:
    options = {"plan": plan, "mode": mode, **more}
    compiled = torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)
    results = []
    with torch.no_grad():
        for number in range(3):
            with soda_compile.trajectory(model):
                for inputs in calls:
                    fresh = {
                        name: value + number if name == "hidden_states" else value for name, value in inputs.items()
                    }
                    results.append(tree_leaves(compiled(**fresh)))
    return results


def assert_equal(got: list[Any], wanted: list[Any]) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", gated("wan", others=["pixart"]))
def test_constants_are_copied_once_in_a_generation(capturer: TapeCapturer, name: str, monkeypatch: pytest.MonkeyPatch):
    family = FAMILIES[name]
    model, calls = family.build(), list(family.trajectory(8))
    calls = [{**calls[0], **{key: call[key] for key in ("hidden_states", "timestep")}} for call in calls]
    names = tuple(family.regions)
    plan = Plan("", names, ((COMPUTE,) * 8,) * len(names))
    copied: list[int] = []
    copy = torch._foreach_copy_

    def noted(copies: Any, values: Any, **more: Any) -> None:
        copied.append(len(values))
        copy(copies, values, **more)

    monkeypatch.setattr(torch, "_foreach_copy_", noted)
    recorded = trajectories(model, plan, calls, "reduce-overhead")
    constants = {"pixart": 5, "wan": 4}[name]
    first, others = [2 + constants, *[2] * 6], [2 + constants, *[2] * 7]  # the very first step is run as it is
    assert copied == first + 2 * others, "latents and timestep at each step, the text at none"
    assert len(capturer.tapes) == 1
    assert_equal(recorded, trajectories(model, plan, calls, None))


@pytest.mark.parametrize("score", gated("drift", others=["random"]))
@pytest.mark.parametrize("name", gated("dit", others=["flux"]))
def test_recorded_steps_give_the_same(capturer: TapeCapturer, name: str, score: str):
    family = FAMILIES[name]
    model, calls = family.build(), list(family.trajectory(8))
    plan = plan_for(name, score)
    wanted = trajectories(model, plan, calls, None)
    assert not capturer.tapes
    torch._dynamo.reset()
    got = trajectories(model, plan, calls, "reduce-overhead")
    assert capturer.tapes, "from the second trajectory on"
    assert_equal(got, wanted)


@pytest.mark.parametrize("conditioning", gated("trajectory", others=["step"]))
def test_forecasts_are_compared_outside_of_what_is_recorded(capturer: TapeCapturer, conditioning: str):
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(8))
    plan = plan_for("dit")
    watched = WatchedRegion(plan.regions[0], {3: 1e-6, 6: 1e6})  # trips at step 3, and no longer at 6
    plan = dataclasses.replace(plan, watched=watched)
    options: dict[str, Any] = {"guard": 1.01, "conditioning": conditioning}
    unguarded = trajectories(model, plan, calls, None, conditioning=conditioning)
    readings = [each.drift.as_dict() for _, each in read(model)]
    assert readings[-1]["readings"] == 2
    torch._dynamo.reset()
    wanted = trajectories(model, plan, calls, None, **options)
    torch._dynamo.reset()
    got = trajectories(model, plan, calls, "reduce-overhead", **options)
    assert capturer.tapes
    assert_equal(got, wanted)
    assert [tally.guarded for _, tally in read(model)] == [0] * 3 + [2] * 6, "steps 4 and 5 of each"
    differ = [not torch.equal(one[0], other[0]) for one, other in zip(got, unguarded, strict=True)]
    assert differ == [False, False, False, False, True, True, False, False] * 3
    found = [each.drift.as_dict() for _, each in read(model)]
    assert found[:3] == found[3:6] == found[6:]


def read(model: torch.nn.Module) -> Any:
    """The generations of a model, once all that was compared is read."""
    soda_compile.stats(model)
    return statistics(model).generations


def test_inputs_that_repeat_their_memory_are_taken(capturer: TapeCapturer):
    """As pipelines expand one timestep to the batch."""
    model, plan, calls = FAMILIES["sd3"].build(), plan_for("sd3"), FAMILIES["sd3"].trajectory(8)
    expanded = [{**call, "timestep": call["timestep"][:1].expand(2)} for call in calls]
    wanted = trajectories(model, plan, expanded, None)
    torch._dynamo.reset()
    assert_equal(trajectories(model, plan, expanded, "reduce-overhead"), wanted)
    assert capturer.tapes


def test_recorded_steps_take_conditioning_that_was_computed_ahead(capturer: TapeCapturer):
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(8))
    plan = plan_for("dit")
    wanted = trajectories(model, plan, calls, None, conditioning="trajectory")
    torch._dynamo.reset()
    got = trajectories(model, plan, calls, "reduce-overhead", conditioning="trajectory")
    assert capturer.tapes
    assert_equal(got, wanted)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_what_a_branch_keeps_ends_with_its_program(capturer: TapeCapturer, mode: str | None):
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(8))
    plan = plan_for("dit")
    gc.collect()
    others = [each for each in gc.get_objects() if isinstance(each, Slots)]
    trajectories(model, plan, calls, mode, conditioning="trajectory")
    assert statistics(model).budget.used_bytes == 0
    kept = [weakref.ref(each) for each in gc.get_objects() if isinstance(each, Slots) and each not in others]
    assert len(kept) == (mode is not None), "recorded steps are kept for the next generation"
    capturer.tapes.clear()  # what a device keeps is freed with the graphs
    torch._dynamo.reset()
    gc.collect()
    assert all(each() is None for each in kept)


def test_equal_steps_share_a_graph(capturer: TapeCapturer):
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(6))
    row = (COMPUTE, REUSE, REUSE, COMPUTE, REUSE, REUSE)
    regions = tuple(family.regions)
    trajectories(model, Plan("", regions, (row,) * len(regions)), calls, "reduce-overhead")
    assert len(capturer.tapes) == 2, "anchors and reuses"


def test_weights_that_move_are_recorded_anew(capturer: TapeCapturer):
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(8))
    plan = plan_for("dit")
    before = trajectories(model, plan, calls, "reduce-overhead")
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5
    recorded = len(capturer.tapes)
    got = trajectories(model, plan, calls, "reduce-overhead")
    assert len(capturer.tapes) > recorded
    torch._dynamo.reset()
    wanted = trajectories(model, plan, calls, None)
    assert not torch.equal(got[-1][0], before[-1][0])
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_inputs_elsewhere_are_named(capturer: TapeCapturer, caplog: pytest.LogCaptureFixture):
    assert not capturer.tapes
    recording = cuda_graphs.Recording((True, False))
    program: Any = type("Program", (), {"tensors": {}, "registers_read": {0: frozenset({0, 1})}})()
    inputs = [torch.zeros(2, device="meta"), torch.zeros(3)]
    with caplog.at_level(logging.WARNING, "soda_compile"):
        assert recording.start(program, [], inputs) is None
        assert recording.start(program, [], inputs) is None
    (record,) = caplog.records
    assert record.getMessage() == (
        "steps run without CUDA graphs: input 1 (torch.float32, shape (3,)) lies on cpu, the model on meta; "
        "move it there"
    )


def test_what_cannot_be_recorded_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capturer: TapeCapturer):
    def fail(body: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capturer, "capture", fail)
    family = FAMILIES["dit"]
    model, calls = family.build(), list(family.trajectory(8))
    with pytest.raises(soda_compile.CaptureError, match=r"step \d cannot be recorded .* not permitted .* mode=None"):
        trajectories(model, plan_for("dit"), calls, "reduce-overhead")


def test_modes_that_record():
    assert check_options(mode="reduce-overhead").cuda_graphs
    assert check_options({"inductor": {"triton.cudagraphs": True}}).cuda_graphs
    assert not check_options(mode="max-autotune-no-cudagraphs").cuda_graphs
    with pytest.raises(soda_compile.OptionError, match="given twice"):
        check_options({"mode": "default"}, "reduce-overhead")
    with pytest.raises(soda_compile.OptionError, match="no option of backend 'soda'"):
        check_options({"cuda_graphs": True})
