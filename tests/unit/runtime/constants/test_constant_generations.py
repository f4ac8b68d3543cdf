"""What is computed once belongs to one branch of guidance of one generation, and is nobody else's."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from constant_runs import ALL, STEPS, assert_equal, at, calls, compiled_with, generate, without
from random_plans import random_plan
from side_models import SideDenoiser, side_denoiser
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan


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
    assert "slot_memory_bytes=100 does not allow" in counted["reasons"]["memory of constants of a generation"]


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
