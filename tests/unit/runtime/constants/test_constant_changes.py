"""What a generation does not change is computed once in it, and again when it does change."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from constant_runs import ALL, STEPS, assert_equal, at, calls, compiled_with, generate, without
from random_plans import random_plan
from side_models import side_denoiser, side_inputs, step_inputs
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.plan import Plan
from soda_compile.runtime import unchanged


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


Mode = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def both(plan: Plan) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A model and its compiled form, for tests that leave the weights as they found them."""
    model = side_denoiser()
    return model, compiled_with(model, plan)


def does_what_the_model_does(
    model: nn.Module, compiled: Callable[..., Tensor], mode: Mode, given: Iterable[dict[str, Any]]
) -> None:
    """Runs one generation; each call is made by the model as well."""
    with mode(), soda_compile.trajectory(model):
        for call in given:
            torch.testing.assert_close(compiled(**call), model(**call), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", DEPENDENT)
@pytest.mark.parametrize("change", [*KEPT, *CHANGED_ONCE, another_at_each_step])
def test_what_changes_is_computed_again(
    change: Callable[[str], Iterator[dict[str, Tensor]]],
    name: str,
    mode: Mode,
    both: tuple[nn.Module, Callable[..., Tensor]],
    runs: list[list[int]],
):
    """Each input on its own, and only what depends on it."""
    sides = zip(range(STEPS), change(name), strict=False)
    does_what_the_model_does(*both, mode, ({**step_inputs(step, STEPS), **side} for step, side in sides))
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
    mode: Mode,
    both: tuple[nn.Module, Callable[..., Tensor]],
    runs: list[list[int]],
):
    weight = both[0].get_parameter(path)
    before = weight.detach().clone()

    def changing() -> Iterator[dict[str, Any]]:
        for step, call in enumerate(calls()):
            if step == 2:
                change(weight)
            yield call

    does_what_the_model_does(*both, mode, changing())
    weight.data = before
    assert runs == at({0: ALL, 2: again})
