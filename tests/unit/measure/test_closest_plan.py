"""The choice among plans for one goal."""

from collections.abc import Iterator

import numpy as np
import pytest
from diffusers import EulerAncestralDiscreteScheduler
from test_replayed_plans import Loop, ddim, recorded
from tracing import eager_graphs

import soda_compile
import soda_compile.measure.closest
from soda_compile.errors import OptionError, PlanError
from soda_compile.measure.recording import Recording
from soda_compile.plans.sensitivity import Sensitivity


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


def measured(loop: Loop) -> tuple[Recording, Sensitivity]:
    sensitivity = soda_compile.calibrate(loop.model, loop, generations=1, max_interval=4, scheduler=loop.scheduler)
    return recorded(loop), sensitivity


@pytest.fixture(scope="module", params=["ddim", "ancestral"])
def setting(request: pytest.FixtureRequest, eager: None) -> tuple[Recording, Sensitivity]:
    return measured(ddim() if request.param == "ddim" else Loop(EulerAncestralDiscreteScheduler()))


@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_no_candidate_is_closer(setting: tuple[Recording, Sensitivity], objective: str) -> None:
    recording, sensitivity = setting
    found = soda_compile.closest_plan(
        recording, soda_compile.simulate(recording, sensitivity, spacings=(1, 2)), anchors=4, objective=objective
    )
    size = np.mean if objective == "mean" else lambda errors: np.quantile(errors, 0.9)
    by_interval = {"simulated", "simulated, worst", "searched", "searched, worst"}
    assert set(found.compared.errors) == by_interval | {"forecast1", "forecast2", "reuse", "fixed interval, reuse"}
    assert found.fit is not None
    assert found.plan == found.fit.plan
    after = soda_compile.compare(recording, {"chosen": found.plan}).errors["chosen"]
    assert all(size(after) <= size(errors) * 1.001 for errors in found.compared.errors.values())
    assert str(found).startswith(found.name)


def test_it_is_the_closest_of_the_few_that_are_fitted(setting: tuple[Recording, Sensitivity]) -> None:
    recording, sensitivity = setting
    strategies = {
        "forecast1": soda_compile.AnchorSchedule(),
        "the same": soda_compile.AnchorSchedule(),
        "reuse": soda_compile.AnchorSchedule(operator="reuse"),
        "forecast2": soda_compile.AnchorSchedule(operator="forecast2"),
        "even": soda_compile.FixedInterval(operator="reuse"),
    }
    found = soda_compile.closest_plan(recording, sensitivity, anchors=4, strategies=strategies)
    off = {name: float(errors.mean()) for name, errors in found.compared.errors.items() if name != "the same"}
    plans = {
        name: soda_compile.plan(sensitivity, anchors=4, strategy=strategy) for name, strategy in strategies.items()
    }
    few = sorted(off, key=lambda name: off[name])[:3]
    fits = {name: soda_compile.fit(recording, plans[name], ridges=(1e-2,)) for name in few}
    best = min(few, key=lambda name: float(fits[name].after.mean()))
    assert (found.name, found.plan) == (best, soda_compile.fit(recording, plans[best]).plan)
    with pytest.raises(OptionError, match=r"ridges are \(0\.0,\)"):
        soda_compile.fit(recording, found.plan, ridges=(0.0,))


def test_moving_anchors_brings_the_closest_plan_closer(
    setting: tuple[Recording, Sensitivity], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, sensitivity = setting
    strategies = {"even": soda_compile.FixedInterval(operator="reuse")}
    found = soda_compile.closest_plan(recording, sensitivity, anchors=4, strategies=strategies, fit=0, moving=8)
    even = soda_compile.plan(sensitivity, anchors=4, strategy=strategies["even"])
    assert found.name == "even, moved"
    moved = len(set(found.plan.anchors) - set(even.anchors))
    assert dict(found.plan.method)["moved_anchors"] == moved > 0
    assert len(found.plan.anchors) == 4
    ran = soda_compile.compare(recording, {"even": even, "moved": found.plan}).errors
    assert ran["moved"].mean() < ran["even"].mean()
    assert found.compared.errors["even, moved"] == pytest.approx(ran["moved"])
    assert found.compared.best == "even, moved"
    still = soda_compile.closest_plan(recording, sensitivity, anchors=4, strategies=strategies, fit=0)
    assert still.plan.anchors == even.anchors, "they are too close to be moved unasked"
    assert still.compared.denoiser_calls < found.compared.denoiser_calls
    monkeypatch.setattr(soda_compile.measure.closest, "APART", 2)
    unasked = soda_compile.closest_plan(recording, sensitivity, anchors=4, strategies=strategies, fit=0)
    assert unasked.plan == found.plan


def test_without_fitting_the_plan_is_the_candidate(setting: tuple[Recording, Sensitivity]) -> None:
    recording, sensitivity = setting
    found = soda_compile.closest_plan(recording, sensitivity, speedup=1.5, fit=0)
    assert found.fit is None
    assert found.plan.weights == ()
    assert "simulated" not in found.compared.errors


def test_what_cannot_reach_the_goal_is_left_out(setting: tuple[Recording, Sensitivity]) -> None:
    recording, sensitivity = setting
    found = soda_compile.closest_plan(recording, sensitivity, anchors=1, fit=0)
    assert found.name == "fixed interval, reuse"  # the others need more than one anchor for 8 steps
    assert set(found.unreached) == {"forecast1", "forecast2", "reuse"}
    with pytest.raises(PlanError, match="out of reach"):
        soda_compile.closest_plan(recording, sensitivity, speedup=500)
    with pytest.raises(OptionError, match="objective is 'median'"):
        soda_compile.closest_plan(recording, sensitivity, anchors=4, objective="median")  # type: ignore[arg-type]
    for moving in (-1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match=f"moving is {moving}"):
            soda_compile.closest_plan(recording, sensitivity, anchors=4, moving=moving)
