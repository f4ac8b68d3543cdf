"""Recorded generations that are run again under plans: closeness, fitted weights and simulated intervals."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import small_denoiser as small
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor
from tracing import eager_graphs

import soda_compile
from soda_compile.errors import OptionError, PlanError, SensitivityError
from soda_compile.measure import fitting
from soda_compile.measure.player import Player, playing
from soda_compile.measure.recording import Recording
from soda_compile.measure.weight_numbers import polynomial_weights
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.plan import Plan

STEPS = 8


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


class Loop:
    """A sampler of the small denoiser with guidance.

    ``separate`` makes two calls of a step instead of one; ``normed`` gives what is guided the norm of one of them.
    """

    def __init__(self, scheduler: Any, guidance: float = 1.5, separate: bool = False, normed: bool = False) -> None:
        self.model, self.scheduler = small.Denoiser(), scheduler
        self.guidance, self.separate, self.normed = guidance, separate, normed

    def __call__(self, seed: int, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, small.TOKENS, small.WIDTH, generator=generator)
        self.scheduler.set_timesteps(STEPS)
        x = x * self.scheduler.init_noise_sigma
        options = {} if isinstance(self.scheduler, DDIMScheduler) else {"generator": generator}
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                scaled = self.scheduler.scale_model_input(x, t)
                x = self.scheduler.step(self._noise(scaled, t), t, x, **options).prev_sample
        return x

    def _noise(self, x: Tensor, t: Tensor) -> Tensor:
        if self.separate:
            one, other = self.model(x, t.expand(len(x))), self.model(x, (t + 40).expand(len(x)))
        else:
            times = torch.cat([t.expand(len(x)), (t + 40).expand(len(x))])
            one, other = self.model(torch.cat([x, x]), times).chunk(2)
        guided = one + self.guidance * (other - one)
        return guided * (other.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True) if self.normed else 1)


def recorded(loop: Loop, generations: int = 2, first_seed: int = 0) -> Recording:
    return soda_compile.record(
        loop.model, loop, generations=generations, first_seed=first_seed, scheduler=loop.scheduler
    )


def plan_of(row: str, **changes: Any) -> Plan:
    return small.make_plan([row] * len(small.REGIONS), **changes)


PLAN = plan_of("CrC11C12")


def ddim(**options: Any) -> Loop:
    return Loop(DDIMScheduler(clip_sample=False), **options)


LOOPS = {
    "ddim": ddim,
    "two calls": lambda: ddim(separate=True),
    "norm of one": lambda: ddim(normed=True),
    "multistep": lambda: Loop(DPMSolverMultistepScheduler()),
    "ancestral": lambda: Loop(EulerAncestralDiscreteScheduler()),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_plan_that_computes_everything_gives_the_recorded_generations(name: str) -> None:
    compared = soda_compile.compare(recorded(LOOPS[name]()), {"all": plan_of("C" * STEPS)})
    assert compared.errors["all"].shape == (4,)
    assert compared.errors["all"].max() < 1e-5
    assert compared.denoiser_calls == pytest.approx(2 * STEPS * (2 if name == "two calls" else 1))


@pytest.mark.parametrize("name", LOOPS)
def test_errors_are_those_of_the_compiled_denoiser(name: str) -> None:
    loop = LOOPS[name]()
    fitted = replace(PLAN, weights=(FittedWeights(1, 0, (0.9,)), FittedWeights(3, 1, (1.2, -0.3))))
    compared = soda_compile.compare(recorded(loop), {"plain": PLAN, "fitted": fitted})
    original, eager = [loop(seed) for seed in range(2)], loop.model
    for key, plan in {"plain": PLAN, "fitted": fitted}.items():
        plan = replace(plan, calls_per_step=2 if loop.separate else 1)
        loop.model = small.compiled(eager, plan=plan)
        pairs = [(loop(seed), wanted) for seed, wanted in enumerate(original)]
        errors = [(one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1) for one, other in pairs]
        assert compared.errors[key] == pytest.approx(torch.cat(errors).numpy(), rel=1e-3)
    assert compared.best == min(compared.errors, key=lambda key: compared.errors[key].mean())


def test_least_squares_finds_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 30, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    wanted = torch.tanh(values @ torch.tensor([0.9, -0.3], dtype=torch.float64)) + 0.1 * noise

    def deviations(weights: fitting.Floats) -> Tensor:
        return torch.tanh(values @ torch.from_numpy(weights)) - wanted

    home = np.array([1.2, -0.5])
    found = fitting.least_squares(deviations, home, home)
    grid = np.linspace(-2, 2, 161)
    least = min(float(deviations(np.array([a, b])).square().sum(1).mean()) for a in grid for b in grid)
    at_home = float(deviations(home).square().sum(1).mean())
    assert least < 0.8 * at_home
    assert float(deviations(found).square().sum(1).mean()) < least + 0.1 * (at_home - least)


def test_least_squares_on_a_linear_toy_is_exact() -> None:
    values = torch.randn(3, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = values @ torch.tensor([1.3, -0.6], dtype=torch.float64)
    home = np.array([1.5, -0.5])
    found = fitting.least_squares(lambda w: values @ torch.from_numpy(w) - wanted, home, home)
    assert found == pytest.approx([1.3, -0.6], abs=1e-2)


@pytest.mark.parametrize("start", [np.array([40.0, -60.0]), np.array([np.nan, 1.0])])
def test_least_squares_from_a_bad_start_is_no_worse_than_from_home(start: fitting.Floats) -> None:
    values = torch.randn(3, 30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def deviations(weights: fitting.Floats) -> Tensor:
        return torch.sin(values @ torch.from_numpy(weights))  # flat and full of other minima far from home

    home = np.array([0.2, -0.1])
    found = fitting.least_squares(deviations, home, start)
    assert float(deviations(found).square().sum()) <= float(deviations(home).square().sum())


def test_fitted_weights_bring_other_generations_closer() -> None:
    loop = ddim()
    fit = soda_compile.fit(recorded(loop), PLAN)
    assert fit.after.mean() < 0.9 * fit.before.mean()
    assert 0 < fit.fitted_steps <= 5
    assert {each.step for each in fit.plan.weights} <= {1, 3, 4, 6, 7}
    fresh = soda_compile.compare(recorded(loop, first_seed=100), {"polynomial": PLAN, "fitted": fit.plan})
    assert fresh.errors["fitted"].mean() < fresh.errors["polynomial"].mean()
    again = soda_compile.compare(recorded(loop), {"fitted": fit.plan})
    assert again.errors["fitted"] == pytest.approx(fit.after, rel=1e-3)
    assert dict(fit.plan.method)["fitted_samples"] == 4


def test_a_bad_start_is_guarded() -> None:
    bad = replace(PLAN, weights=(FittedWeights(3, 1, (90.0, 80.0)), FittedWeights(7, 2, (-50.0, 0.0, 60.0))))
    recording = recorded(ddim())
    started = soda_compile.compare(recording, {"bad": bad}).errors["bad"].mean()
    fit = soda_compile.fit(recording, bad)
    assert started > 1
    assert fit.after.mean() <= fit.before.mean() < 1


def test_where_nothing_comes_closer_the_polynomial_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(deviations: Any, home: Any, *others: Any) -> Any:
        return home + 3

    monkeypatch.setattr(fitting, "least_squares", worse)
    fit = soda_compile.fit(recorded(ddim()), PLAN, refine=False)
    assert fit.plan == PLAN
    assert fit.fitted_steps == 0
    assert list(fit.after) == list(fit.before)


def test_steps_that_prune_and_regions_that_read_different_steps_are_left_alone() -> None:
    mixed = small.make_plan(["CCrC1CCC", "CrCC1CCC", "C" * STEPS, "C" * STEPS])
    assert [(each.step, each.order) for each in polynomial_weights(mixed)] == [(1, 0), (2, 0)]


def test_what_cannot_be_run_again_is_refused() -> None:
    loop = ddim()
    with pytest.raises(OptionError, match="scheduler"):
        soda_compile.record(loop.model, loop)
    with pytest.raises(PlanError, match="has 5 steps, but generations of 8"):
        soda_compile.compare(recorded(loop), {"short": small.PLAN})
    scheduler = loop.scheduler

    def rescaled(seed: int) -> None:
        step = scheduler.step
        scheduler.step = lambda noise, *others: step(noise.sin(), *others)
        try:
            loop(seed)
        finally:
            del scheduler.step

    with pytest.raises(SensitivityError, match="not a sum of the denoiser's outputs"):
        soda_compile.record(loop.model, rescaled, scheduler=scheduler)


def test_samples_that_change_between_steps_are_refused_after_one_generation() -> None:
    loop, ran = ddim(), []
    scheduler = loop.scheduler

    def inpainted(seed: int) -> None:
        ran.append(seed)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(1, small.TOKENS, small.WIDTH, generator=torch.Generator().manual_seed(seed))
        for t in scheduler.timesteps:
            x = scheduler.step(loop.model(x, t.expand(1)), t, x).prev_sample
            x = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)

    with pytest.raises(SensitivityError, match="changed between DDIMScheduler and step 1"):
        soda_compile.record(loop.model, inpainted, scheduler=scheduler)
    assert ran == [0]


def test_inside_of_playing_the_denoiser_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []
    compiled = Player._compiled
    monkeypatch.setattr(Player, "_compiled", lambda self, *given: captured.append(1) or compiled(self, *given))
    recording, plans = recorded(ddim()), {"plan": PLAN}
    first, second = soda_compile.compare(recording, plans), soda_compile.compare(recording, plans)
    assert len(captured) == 2
    with playing(recording) as player:
        third, fit = soda_compile.compare(recording, plans), soda_compile.fit(recording, PLAN)
    assert len(captured) == 3
    assert first.denoiser_calls == second.denoiser_calls == pytest.approx(third.denoiser_calls)
    assert player.computed_share == pytest.approx(third.denoiser_calls + fit.denoiser_calls)
    assert third.errors["plan"] == pytest.approx(first.errors["plan"])
