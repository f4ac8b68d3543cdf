"""The backend on a small denoiser: options, trajectories, branches of guidance.

Inductor compiles what runs without a plan; all else is a matter of which graph runs when.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_denoiser import (
    PLAN,
    ROUNDING,
    STEPS,
    TIMED,
    TWO_CALLS,
    Call,
    Denoiser,
    calls,
    compiled,
    generate,
    make_plan,
    reference,
    same,
)
from thorough import gated
from torch import Tensor
from tracing import statistics

import soda_compile
from soda_compile.plans.resume import resume_at
from soda_compile.runtime.denoiser import PlannedDenoiser

pytestmark = pytest.mark.usefixtures("eager_throughout")


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return Denoiser()


@pytest.fixture(scope="module")
def denoiser(model: Denoiser) -> Callable[..., Any]:
    """The plan without timesteps: counting decides."""
    return compiled(model, plan=PLAN)


@pytest.fixture(scope="module")
def timed(model: Denoiser) -> Callable[..., Any]:
    """The plan with timesteps."""
    return compiled(model, plan=TIMED)


@pytest.fixture(scope="module")
def two_calls(model: Denoiser) -> Callable[..., Any]:
    return compiled(model, plan=TWO_CALLS)


@pytest.fixture(scope="module")
def clean(model: Denoiser, timed: Callable[..., Any]) -> Tensor:
    """A generation with nothing before it."""
    with soda_compile.trajectory(model):
        return generate(timed, calls())


# Options


def test_the_name_is_registered() -> None:
    assert "soda" in torch._dynamo.list_backends(exclude_tags=())


def test_an_unknown_option_suggests_the_known_one(model: Denoiser) -> None:
    with pytest.raises(soda_compile.OptionError, match=r"'plam'.*did you mean 'plan'"):
        soda_compile.check_options({"plam": PLAN})
    with pytest.raises(soda_compile.OptionError, match=r"'plam'.*did you mean 'plan'"):
        generate(compiled(model, plam=PLAN), calls())


def test_an_unknown_inductor_setting_suggests_the_known_one() -> None:
    with pytest.raises(soda_compile.OptionError, match=r"'max_autotun'.*did you mean 'max_autotune'"):
        soda_compile.check_options({"plan": PLAN, "inductor": {"max_autotun": True}})


def test_a_plan_of_the_wrong_type_is_named() -> None:
    with pytest.raises(soda_compile.OptionError, match=r"'plan' is 3 \(int\)"):
        soda_compile.check_options({"plan": 3})


def test_a_missing_plan_file_is_named(model: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(soda_compile.PlanError, match=r"none\.json"):
        soda_compile.check_options({"plan": path})
    with pytest.raises(soda_compile.PlanError, match=r"none\.json"):
        generate(compiled(model, plan=str(path)), calls())


def test_a_plan_of_another_model_names_the_regions(model: Denoiser) -> None:
    names = ("blocks.0.mix", "blocks.0.other", "blocks.1.mix", "blocks.1.mlp")
    with pytest.raises(
        soda_compile.PlanError, match=r"not in this graph: blocks\.0\.other; not in the plan: blocks\.0\.mlp"
    ):
        generate(compiled(model, plan=make_plan(regions=names)), calls())
    with pytest.raises(soda_compile.PlanError, match=r"fingerprint 0123"):
        generate(compiled(model, plan=make_plan(fingerprint="0123")), calls())


@pytest.mark.parametrize("lowering", gated("eager", others=["inductor"]))
def test_without_a_plan_it_warns_once_and_is_plain(model: Denoiser, lowering: str) -> None:
    plain = generate(torch.compile(model, backend=lowering, dynamic=False), calls())
    denoiser = torch.compile(model, backend="soda", options={"lowering": lowering}, dynamic=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = generate(denoiser, calls())
    assert len([entry for entry in caught if "has no plan" in str(entry.message)]) == 1
    torch.testing.assert_close(result, plain, **ROUNDING)


def test_gradients_run_plain_or_are_refused(model: Denoiser, timed: Callable[..., Any], clean: Tensor) -> None:
    with pytest.raises(soda_compile.OptionError, match=r"gradients enabled.*no_grad\(\)"):
        compiled(model, plan=PLAN, on_miss="error")(*calls()[0])
    before = statistics(model).total.misses["gradients"]
    timed(*calls()[0]).square().sum().backward()
    expected = torch.autograd.grad(model(*calls()[0]).square().sum(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **ROUNDING)
    assert statistics(model).total.misses["gradients"] == before + 1
    same(generate(timed, calls()), clean)


def test_a_plan_file_is_as_good_as_its_plan(
    model: Denoiser, timed: Callable[..., Any], clean: Tensor, tmp_path: Path
) -> None:
    TIMED.save(tmp_path / "plan.json")
    same(generate(compiled(model, plan=str(tmp_path / "plan.json")), calls()), clean)


# Trajectories


def test_the_plan_is_carried_out(model: Denoiser, timed: Callable[..., Any], clean: Tensor) -> None:
    torch.testing.assert_close(clean, reference(model, TIMED, calls()), **ROUNDING)
    assert (clean - generate(model, calls())).abs().max() > 1e-2


def test_calls_without_a_trajectory_count_and_wrap(model: Denoiser, denoiser: Callable[..., Any]) -> None:
    first, second, third = (generate(denoiser, calls(seed)) for seed in (0, 1, 0))
    same(third, first)
    torch.testing.assert_close(second, reference(model, PLAN, calls(1)), **ROUNDING)


def test_a_first_timestep_starts_anew_without_a_trajectory(
    model: Denoiser, timed: Callable[..., Any], clean: Tensor
) -> None:
    generate(timed, calls(1)[:3])
    same(generate(timed, calls()), clean)


@pytest.fixture(scope="module")
def strict(model: Denoiser) -> Callable[..., Any]:
    return compiled(model, plan=TIMED, on_miss="error")


def test_a_wrong_timestep_is_an_error_with_both_values(
    model: Denoiser, strict: Callable[..., Any], clean: Tensor
) -> None:
    with (
        soda_compile.trajectory(model),
        pytest.raises(soda_compile.TrajectoryError, match=r"timestep=400, but step 1 is due, which has 700"),
    ):
        generate(strict, [calls()[0], calls()[2]])
    same(generate(strict, calls()), clean)


def test_more_calls_than_steps_are_an_error(model: Denoiser, strict: Callable[..., Any]) -> None:
    with (
        soda_compile.trajectory(model),
        pytest.raises(soda_compile.TrajectoryError, match=f"step {STEPS + 1} of a trajectory.*{STEPS} steps"),
    ):
        generate(strict, [*calls(), calls()[0]])


def test_a_branch_that_misses_a_step_is_an_error(model: Denoiser, strict: Callable[..., Any]) -> None:
    with soda_compile.trajectory(model, manual=True) as generation:
        generate(strict, calls()[:1])
        generation.advance()
        with pytest.raises(soda_compile.TrajectoryError, match="branch 1 of guidance is called for step 1"):
            generate(strict, calls()[1:2] * 2)


def test_calls_off_the_plan_compute_everything_and_disturb_nothing(
    model: Denoiser, timed: Callable[..., Any], clean: Tensor
) -> None:
    """Evaluations that an adaptive solver adds, a generation that ends early, one that goes on for longer."""
    extra = (calls(3)[0][0], torch.full((2,), 555.0))
    with soda_compile.trajectory(model) as generation:
        generate(timed, calls(1)[:2])
    with soda_compile.trajectory(model) as generation, torch.no_grad():
        results = []
        for call in calls():
            results.append(timed(*call))
            torch.testing.assert_close(timed(*extra), model(*extra), **ROUNDING)
        torch.testing.assert_close(timed(*calls()[2]), model(*calls()[2]), **ROUNDING)
    same(torch.stack(results), clean)
    assert generation.tally.misses == {"timestep": STEPS - 1, "steps": 2}
    assert generation.tally.calls == STEPS


def test_a_branch_that_joins_late_computes_everything_once(model: Denoiser, timed: Callable[..., Any]) -> None:
    """It then follows the plan as far as the values since allow."""
    late = []
    with soda_compile.trajectory(model, manual=True) as generation, torch.no_grad():
        for step, (call, other) in enumerate(zip(calls(), calls(1), strict=True)):
            timed(*call)
            if step >= 2:
                late.append(timed(*other))
            generation.advance()
    plan = resume_at(TIMED, 2)
    torch.testing.assert_close(torch.stack(late), reference(model, plan, calls(1)[2:]), **ROUNDING)
    assert not generation.tally.misses


def test_an_automatic_trajectory_does_not_advance_by_hand(model: Denoiser) -> None:
    with (
        soda_compile.trajectory(model) as clock,
        pytest.raises(soda_compile.TrajectoryError, match="manual=True"),
    ):
        clock.advance()


@pytest.mark.parametrize("reached", range(1, STEPS))
def test_a_generation_that_breaks_off_leaves_nothing(
    model: Denoiser, timed: Callable[..., Any], clean: Tensor, reached: int
) -> None:
    with suppress(KeyboardInterrupt), soda_compile.trajectory(model):
        generate(timed, calls(1)[:reached])
        raise KeyboardInterrupt
    with soda_compile.trajectory(model):
        same(generate(timed, calls()), clean)


def test_a_failing_call_leaves_nothing(
    model: Denoiser, denoiser: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a trajectory: the next call is a first step again."""
    first = generate(denoiser, calls())
    generate(denoiser, calls(1)[:2])
    with monkeypatch.context() as patch:
        patch.setattr(PlannedDenoiser, "_run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(denoiser, calls(1)[2:3])
    same(generate(denoiser, calls()), first)


def fail(*_: Any) -> None:
    raise RuntimeError("out of memory")


# Branches of guidance


def interleave(a: Sequence[Call], b: Sequence[Call]) -> list[Call]:
    return [call for pair in zip(a, b, strict=True) for call in pair]


def test_two_calls_a_step_are_two_branches(model: Denoiser, two_calls: Callable[..., Any]) -> None:
    both = generate(two_calls, interleave(calls(0), calls(1)))
    torch.testing.assert_close(both[0::2], reference(model, PLAN, calls(0)), **ROUNDING)
    torch.testing.assert_close(both[1::2], reference(model, PLAN, calls(1)), **ROUNDING)


def test_branches_of_a_trajectory_that_advances_by_hand(model: Denoiser, denoiser: Callable[..., Any]) -> None:
    results: list[list[Tensor]] = [[], [], []]
    with soda_compile.trajectory(model, manual=True) as clock, torch.no_grad():
        for together in zip(calls(0), calls(1), calls(2), strict=True):
            for result, call in zip(results, together, strict=True):
                result.append(denoiser(*call))
            clock.advance()
    for seed, result in enumerate(results):
        torch.testing.assert_close(torch.stack(result), reference(model, PLAN, calls(seed)), **ROUNDING)
