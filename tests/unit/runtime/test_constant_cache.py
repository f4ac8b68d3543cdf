"""What a generation does not change is computed once in it, and again when it does change."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_plans import random_plan
from side_models import SideDenoiser, side_denoiser, side_inputs, step_inputs
from torch import Tensor, nn
from tracing import eager_graphs

import soda_compile
from soda_compile.backend import entry
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.runtime import constant_cache, unchanged

STEPS = 6
ALL = [0, 1, 2]
"""Calls of the constant stage: of the head for text and mask, and of the two blocks."""

Calls = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The calls of the constant stage, for each call of the denoiser."""
    found: list[list[int]] = []
    run = constant_cache._run

    def noted(stage: Any, numbers: Sequence[int], *more: Any) -> None:
        found.append(list(numbers))
        run(stage, numbers, *more)

    monkeypatch.setattr(constant_cache, "_run", noted)
    return found


@pytest.fixture
def model() -> nn.Module:
    return side_denoiser()


@pytest.fixture
def plan(model: nn.Module) -> Plan:
    return compute_all_plan(soda_compile.inspect(model, **calls()[0]).region_names, STEPS)


def calls(seed: int = 0) -> Calls:
    """A generation's calls, with the same side information at each."""
    side = side_inputs(seed)
    return [{**step_inputs(step, STEPS, seed), **side} for step in range(STEPS)]


def compiled_with(model: nn.Module, plan: Plan, **options: Any) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(model, backend="soda", options={"plan": plan, **options}, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


def generate(model: nn.Module, compiled: Callable[..., Tensor], given: Calls) -> list[Tensor]:
    with torch.no_grad(), soda_compile.trajectory(model):
        return [compiled(**call).clone() for call in given]


def without(model: nn.Module, plan: Plan, given: Calls) -> list[Tensor]:
    """What the plan gives where everything is computed at each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "take_constants", lambda structure, timestep, lowering: (structure, None))
        return generate(model, compiled_with(model, plan), given)


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def at(steps: dict[int, list[int]]) -> list[list[int]]:
    return [steps.get(step, []) for step in range(STEPS)]


@pytest.mark.parametrize("granularity", ["block", "step"])
@pytest.mark.parametrize("seed", range(3))
def test_once_in_a_generation_whatever_the_plan(seed: int, granularity: str, model: nn.Module, runs: list[list[int]]):
    names = soda_compile.inspect(model, **calls()[0]).region_names
    plan = random_plan(seed, names, STEPS)
    compiled = compiled_with(model, plan, granularity=granularity)
    for number in range(2):
        runs.clear()
        assert_equal(generate(model, compiled, calls(number)), without(model, plan, calls(number)))
        assert runs == at({0: ALL})


def test_a_plan_that_computes_everything_gives_what_the_model_gives(model: nn.Module, plan: Plan):
    given = calls()
    with torch.no_grad():
        expected = [model(**call) for call in given]
    for ours, theirs in zip(generate(model, compiled_with(model, plan), given), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def same(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    while True:
        yield side


def equal_values(name: str) -> Iterator[dict[str, Tensor]]:
    while True:
        yield side_inputs()


def written_in_place(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    for step in range(STEPS):
        if step == 3:
            side[name].copy_(side[name].roll(1, 1))
        yield side


def written_past_the_counter(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    for step in range(STEPS):
        if step == 3:
            side[name].data.copy_(side[name].roll(1, 1))
        yield side


def given_other_numbers(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    for step in range(STEPS):
        if step == 3:
            side[name].data = side[name].roll(1, 1)
        yield side


def another_tensor(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    yield from [side] * 3
    yield from [{**side, name: side[name].roll(1, 1)}] * 3


def another_at_each_step(name: str) -> Iterator[dict[str, Tensor]]:
    side = side_inputs()
    for step in range(STEPS):
        yield {**side, name: side[name].roll(step, 1)}


DEPENDENT = {"text": ALL, "side": [1, 2], "mask": [0]}
"""Calls that depend on an input: keys and values of the blocks do not read the mask."""

KEPT = [same, equal_values]
CHANGED_ONCE = [written_in_place, written_past_the_counter, given_other_numbers, another_tensor]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("change", [*KEPT, *CHANGED_ONCE, another_at_each_step])
def test_what_changes_is_computed_again(
    change: Callable[[str], Iterator[dict[str, Tensor]]],
    name: str,
    mode: Callable[[], AbstractContextManager[None]],
    model: nn.Module,
    plan: Plan,
    runs: list[list[int]],
):
    """Each input on its own, and only what depends on it."""
    compiled = compiled_with(model, plan)
    with mode(), soda_compile.trajectory(model):
        for step, side in zip(range(STEPS), change(name), strict=False):
            call = {**step_inputs(step, STEPS), **side}
            torch.testing.assert_close(compiled(**call), model(**call), rtol=1e-5, atol=1e-6)
    again = DEPENDENT[name]
    if change in KEPT:
        assert runs == at({0: ALL})
    elif change in CHANGED_ONCE:
        assert runs == at({0: ALL, 3: again})
    else:
        assert runs == [ALL, *[again] * (STEPS - 1)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (same, at({0: ALL})),
        (equal_values, [ALL] * STEPS),  # comparing would wait for the device
        (written_in_place, at({0: ALL, 3: ALL})),
        (given_other_numbers, at({0: ALL, 3: ALL})),
        (another_tensor, at({0: ALL, 3: ALL})),
    ],
)
def test_where_the_host_cannot_read_it_must_be_the_same_tensor(
    change: Any,
    expected: Any,
    model: nn.Module,
    plan: Plan,
    runs: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(unchanged, "on_host", lambda value: False)
    compiled = compiled_with(model, plan)
    with torch.no_grad(), soda_compile.trajectory(model):
        for step, side in zip(range(STEPS), change("text"), strict=False):
            call = {**step_inputs(step, STEPS), **side}
            torch.testing.assert_close(compiled(**call), model(**call), rtol=1e-5, atol=1e-6)
    assert runs == expected


def test_tensors_that_count_no_writes_are_not_trusted_on_a_device(
    model: nn.Module, plan: Plan, runs: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unchanged, "on_host", lambda value: False)
    compiled = compiled_with(model, plan)
    with torch.inference_mode(), soda_compile.trajectory(model):
        side = side_inputs()
        for step in range(STEPS):
            side["text"].mul_(1.1)
            call = {**step_inputs(step, STEPS), **side}
            torch.testing.assert_close(compiled(**call), model(**call), rtol=1e-5, atol=1e-6)
    assert runs == [ALL] * STEPS


def copied_to(weight: nn.Parameter) -> None:
    weight.copy_(weight * 1.5)


def scaled(weight: nn.Parameter) -> None:
    weight.mul_(1.5)


def replaced(weight: nn.Parameter) -> None:
    with torch.inference_mode(False):
        weight.data = weight.data * 1.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", [copied_to, scaled, replaced])
@pytest.mark.parametrize(
    ("path", "again"),
    [("caption.weight", ALL), ("blocks.1.k.bias", [2]), ("blocks.0.side.weight", [1]), ("blocks.0.q.weight", [])],
)
def test_weights_that_change_in_a_generation_are_noticed(
    path: str,
    again: list[int],
    change: Callable[[nn.Parameter], None],
    mode: Callable[[], AbstractContextManager[None]],
    model: nn.Module,
    plan: Plan,
    runs: list[list[int]],
):
    compiled = compiled_with(model, plan)
    with mode(), soda_compile.trajectory(model):
        for step, call in enumerate(calls()):
            if step == 2:
                change(model.get_parameter(path))
            torch.testing.assert_close(compiled(**call), model(**call), rtol=1e-5, atol=1e-6)
    assert runs == at({0: ALL, 2: again})


def test_the_caller_may_write_over_inputs_and_outputs(model: nn.Module, plan: Plan, runs: list[list[int]]):
    """New tensors of equal numbers after the old ones were written over: nothing kept lies in these."""
    expected = generate(model, compiled_with(model, plan), calls())
    compiled = compiled_with(model, plan)
    runs.clear()
    found = []
    with torch.no_grad(), soda_compile.trajectory(model):
        for call in calls():
            mine = {name: value.clone() for name, value in call.items()}
            result = compiled(**mine)
            found.append(result.clone())
            for value in (result, *mine.values()):
                value.fill_(1)
    assert_equal(found, expected)
    assert runs == at({0: ALL})


class Returning(SideDenoiser):
    """Returns constants, a view of one, and an input too."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, side: Tensor) -> Any:
        keys = self.blocks[0].k(self.caption(text))
        return super().forward(x, t, text, mask, side), keys, keys.transpose(1, 2), mask[:, None], text


@pytest.mark.parametrize("write", [False, True])
def test_a_model_that_returns_constants(write: bool, runs: list[list[int]]):
    model = side_denoiser(Returning)
    plan = random_plan(3, soda_compile.inspect(model, **calls()[0]).region_names, STEPS)
    compiled = compiled_with(model, plan)
    with torch.no_grad(), soda_compile.trajectory(model):
        for call in calls():
            mine = {name: value.clone() for name, value in call.items()}
            expected = model(**call)
            found = compiled(**mine)
            assert_equal(found[3:], expected[3:])
            for ours, theirs in zip(found[1:3], expected[1:3], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            if write:
                for value in (*found, *mine.values()):
                    value.fill_(1)
    assert [bool(run) for run in runs] == [True, *[False] * (STEPS - 1)]


def test_a_plan_that_is_compiled_anew_in_a_generation(model: nn.Module, plan: Plan, runs: list[list[int]]):
    """As where a LoRA's scale changes, a number in its code."""
    expected = generate(model, compiled_with(model, plan), calls())
    runs.clear()
    compiled = compiled_with(model, plan)
    found = []
    with torch.no_grad(), soda_compile.trajectory(model):
        for step, call in enumerate(calls()):
            if step == 3:
                torch._dynamo.reset()
                compiled = compiled_with(model, plan)
            found.append(compiled(**call))
    assert_equal(found, expected)
    assert runs == at({0: ALL, 3: ALL})


def test_each_branch_of_guidance_keeps_its_own(model: nn.Module, plan: Plan, runs: list[list[int]]):
    plan = replace(plan, calls_per_step=2)
    branches = [calls(0), calls(1)]
    with torch.no_grad():
        expected = [[model(**call) for call in branch] for branch in branches]
    compiled = compiled_with(model, plan)
    given = [call for pair in zip(*branches, strict=True) for call in pair]
    found = generate(model, compiled, given)
    for number, theirs in enumerate(expected):
        for mine, other in zip(found[number::2], theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert runs == [ALL, ALL, *[[]] * (2 * STEPS - 2)]


def test_generations_side_by_side_keep_their_own(model: nn.Module, plan: Plan, runs: list[list[int]]):
    alone = [generate(model, compiled_with(model, plan), calls(seed)) for seed in range(2)]
    compiled = compiled_with(model, plan)
    runs.clear()
    generations = [soda_compile.new_generation(model) for _ in alone]
    found: list[list[Tensor]] = [[], []]
    for step in range(STEPS):
        for seed, generation in enumerate(generations):
            with generation, torch.no_grad():
                found[seed].append(compiled(**calls(seed)[step]))
    for mine, other in zip(found, alone, strict=True):
        assert_equal(mine, other)
    assert runs == [ALL, ALL, *[[]] * (2 * STEPS - 2)]


def test_a_step_that_reads_no_constants_computes_none(model: nn.Module, runs: list[list[int]]):
    """Even where they would have changed: steps that reuse are to stay cheap."""
    names = soda_compile.inspect(model, **calls()[0]).region_names
    plan = Plan("", names, ((COMPUTE, REUSE, COMPUTE, REUSE, REUSE, COMPUTE),) * len(names))
    given = [{**call, "text": call["text"] + step} for step, call in enumerate(calls())]
    expected = without(model, plan, given)
    runs.clear()
    assert_equal(generate(model, compiled_with(model, plan), given), expected)
    assert runs == at(dict.fromkeys((0, 2, 5), ALL))


def test_memory_is_booked_and_given_back(model: nn.Module, plan: Plan):
    given = calls()
    compiled = compiled_with(model, plan)
    with torch.no_grad(), soda_compile.trajectory(model):
        compiled(**given[0])
        kept = soda_compile.stats(model)["model"]["slot_bytes"]
    sizes = 2 * 5 * 16 + 2 * 5 / 4 + 2 * (2 * 2 * 5 * 16 + 2 * 9 * 32)  # text and mask; keys, values and side of two
    assert kept == 4 * sizes
    assert soda_compile.stats(model)["model"]["slot_bytes"] == 0


def test_without_room_they_are_computed_at_each_step(model: nn.Module, plan: Plan, runs: list[list[int]]):
    expected = generate(model, compiled_with(model, plan), calls())
    runs.clear()
    before = soda_compile.stats(model)["model"]["misses"]
    compiled = compiled_with(model, plan, slot_memory_bytes=100)
    assert_equal(generate(model, compiled, calls()), expected)
    assert runs == [ALL] * STEPS
    counted = soda_compile.stats(model)["model"]
    assert (counted["misses"], counted["slot_bytes"]) == (before, 0)


def test_calls_that_the_plan_does_not_cover(model: nn.Module, plan: Plan):
    call = calls()[0]
    expected = generate(model, compiled_with(model, plan), [call])
    compiled = compiled_with(model, plan)
    with torch.no_grad(), soda_compile.trajectory(model):
        found = [compiled(**call) for _ in range(STEPS + 2)]
    assert_equal(found, expected * (STEPS + 2))
    assert soda_compile.stats(model)["model"]["misses"] == {"steps": 2}


def test_a_branch_that_begins_later(model: nn.Module, runs: list[list[int]]):
    names = soda_compile.inspect(model, **calls()[0]).region_names
    plan = random_plan(1, names, STEPS)
    compiled = compiled_with(model, plan)
    given = calls()
    with torch.no_grad(), soda_compile.trajectory(model, manual=True) as generation:
        for _ in range(2):
            generation.advance()
        torch.testing.assert_close(compiled(**given[2]), model(**given[2]), rtol=1e-5, atol=1e-6)
        for call in given[3:]:
            generation.advance()
            compiled(**call)
    assert [number for run in runs for number in run] == ALL


@pytest.mark.parametrize("around", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_with_conditioning_of_all_steps_too(around: Any, model: nn.Module, runs: list[list[int]]):
    names = soda_compile.inspect(model, **calls()[0]).region_names
    plan = random_plan(2, names, STEPS)
    compiled = compiled_with(model, plan, conditioning="trajectory")
    expected = without(model, plan, calls())
    runs.clear()
    with around():
        for number in range(3):
            found = generate(model, compiled, calls())
            assert runs == at({0: ALL}) * (number + 1)
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours - theirs).norm() < (1e-5 if around is nullcontext else 0.05) * theirs.norm()
