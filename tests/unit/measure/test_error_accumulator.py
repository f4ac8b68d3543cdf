"""Errors of values made by hand, accumulated over steps, rows, branches of guidance and generations."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Gated

import soda_compile
from soda_compile.errors import SensitivityError
from soda_compile.ir.structure import Structure
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.gram import ErrorEntries
from soda_compile.measure.moments import Moments
from soda_compile.plans.sensitivity_info import METRICS
from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.misses import Miss

ROWS, TOKENS, WIDTH, STEPS, INTERVAL = 2, 6, 4, 5, 2
ENTRIES = ErrorEntries(INTERVAL)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return soda_compile.inspect(Gated(), torch.randn(ROWS, TOKENS, WIDTH), torch.randn(ROWS, 1, WIDTH))


def make(structure: Structure, calls_per_step: int = 1, memory_bytes: int = 2**20) -> ErrorAccumulator:
    accumulator = ErrorAccumulator(Clock(automatic=True), CallCounter(calls_per_step), ENTRIES, memory_bytes)
    accumulator.start(structure)
    return accumulator


def values(seed: int) -> dict[str, Tensor]:
    """Cut, gate and carry of all steps of one branch of guidance of one generation."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(ROWS, TOKENS, WIDTH, generator=generator)
    walk = torch.randn(STEPS, ROWS, TOKENS, WIDTH, generator=generator).mul(0.4).cumsum(0)
    return {
        "cut": start + walk,
        "gate": torch.randn(STEPS, ROWS, 1, WIDTH, generator=generator),
        "carry": 1 + torch.rand(STEPS, ROWS, generator=generator),
    }


def feed(accumulator: ErrorAccumulator, *branches: dict[str, Tensor]) -> None:
    """One generation, step by step, the branches of a step one after the other."""
    accumulator.clock.begin()
    assert accumulator.structure is not None
    (region,) = accumulator.structure.regions
    for step, branch in product(range(STEPS), branches):
        accumulator.begin_call({"h": branch["cut"][step], "t": float(STEPS - step)})
        named = {region.cuts[0].node: branch["cut"][step], "gate": branch["gate"][step], "|h|": branch["carry"][step]}
        accumulator.record(0, named)


def expected(branch: dict[str, Tensor], step: int, metric: str, stride: int = 1) -> dict[str, np.ndarray]:
    """Errors [rows] of reuse at ages 1 and 2 and of the forecast from ages 1 and 2, where they are defined."""
    cut = branch["cut"][:, :, ::stride].double().numpy()
    gate, carry = (branch[name][step].double().numpy() for name in ("gate", "carry"))
    predictions = {f"reuse {age}": cut[step - age] for age in (1, 2) if age <= step}
    if step >= 2:
        predictions["forecast1 1 1"] = 2 * cut[step - 1] - cut[step - 2]
    now = cut[step]
    axes = (1, 2)
    errors = {}
    for name, guess in predictions.items():
        if metric == "cosine":
            lengths = np.sqrt((guess**2).sum(axes) * (now**2).sum(axes))
            errors[name] = 1 - (guess * now).sum(axes) / lengths
        elif metric == "relative":
            errors[name] = np.sqrt(((guess - now) ** 2).sum(axes) / (now**2).sum(axes))
        else:
            share = now.shape[1] / TOKENS
            errors[name] = np.sqrt(((gate * (guess - now)) ** 2).sum(axes) / share / carry)
    return errors


def held_bytes(accumulator: ErrorAccumulator) -> int:
    """Size of all past values that are kept."""
    return sum(
        value.nbytes
        for history in accumulator.histories.values()
        for step in (*history.cuts, *history.carries)
        for value in step
    )


def found(accumulator: ErrorAccumulator, step: int, metric: str) -> dict[str, tuple[float, float, float]]:
    """Count, mean and variance by the names of ``expected``."""
    moments = accumulator.moments[step, 0]
    row = METRICS.index(metric)
    variance = moments.deviation[row] / np.maximum(moments.count[row], 1)
    columns = [ENTRIES.split(array) for array in (moments.count[row], moments.mean[row], variance)]
    places = {"reuse 1": ("reuse", 0), "reuse 2": ("reuse", 1), "forecast1 1 1": ("forecast1", (0, 0))}
    entries = {
        name: tuple(float(column[operator][place]) for column in columns) for name, (operator, place) in places.items()
    }
    return {name: entry for name, entry in entries.items() if entry[0]}  # type: ignore[misc]


def check(accumulator: ErrorAccumulator, branches: list[dict[str, Tensor]], stride: int = 1) -> None:
    for step, metric in product(range(1, STEPS), METRICS):
        each = [expected(branch, step, metric, stride) for branch in branches]
        seen = found(accumulator, step, metric)
        assert set(seen) == set(each[0])
        for name, (count, mean, variance) in seen.items():
            samples = np.concatenate([errors[name] for errors in each])
            assert count == len(samples)
            np.testing.assert_allclose([mean, variance], [samples.mean(), samples.var()], rtol=1e-3, atol=1e-7)


def test_mean_and_variance_over_rows_and_generations(structure: Structure):
    accumulator, generations = make(structure), [values(seed) for seed in range(3)]
    for generation in generations:
        feed(accumulator, generation)
    check(accumulator, generations)
    assert accumulator.samples == 3 * ROWS
    assert accumulator.steps == STEPS
    assert (0, 0) not in accumulator.moments


def test_branches_are_kept_apart(structure: Structure):
    accumulator, branches = make(structure, calls_per_step=2), [values(0), values(1)]
    feed(accumulator, *branches)
    check(accumulator, branches)
    assert accumulator.calls_in_a_step == 2
    assert accumulator.steps == STEPS


def test_a_generation_starts_clean(structure: Structure):
    accumulator = make(structure)
    feed(accumulator, values(0))
    accumulator.clock.begin()
    accumulator.begin_call({"h": torch.zeros(ROWS, TOKENS, WIDTH)})
    before = {key: moments.count.copy() for key, moments in accumulator.moments.items()}
    (region,) = structure.regions
    accumulator.record(0, {region.cuts[0].node: torch.ones(ROWS, TOKENS, WIDTH)})
    assert all((before[key] == moments.count).all() for key, moments in accumulator.moments.items())


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.5, 2), (0.34, 3)])
def test_tokens_are_left_out_where_memory_is_short(structure: Structure, share: float, stride: int):
    bound = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    accumulator, branch = make(structure, memory_bytes=int(bound * share)), values(0)
    feed(accumulator, branch)
    assert accumulator.stride == stride
    check(accumulator, [branch], stride)
    kept = held_bytes(accumulator)
    assert kept <= bound * share


def test_memory_is_shared_by_the_branches(structure: Structure):
    bound = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    accumulator = make(structure, calls_per_step=2, memory_bytes=bound)
    feed(accumulator, values(0), values(1))
    assert accumulator.stride == 2


def test_a_second_call_in_a_step_shares_the_memory_once_it_is_seen(structure: Structure):
    """Under a scheduler nobody says that there are two calls; from the second one on tokens are left out."""
    bound = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    accumulator = ErrorAccumulator(Clock(automatic=False), CallCounter(1), ENTRIES, bound)
    accumulator.start(structure)
    branches = [values(0), values(1)]
    (region,) = structure.regions
    accumulator.begin(seed=0)
    for step in range(STEPS):
        for branch in branches:
            accumulator.begin_call({"h": branch["cut"][step]})
            named = {"gate": branch["gate"][step], "|h|": branch["carry"][step]}
            accumulator.record(0, {region.cuts[0].node: branch["cut"][step], **named})
        accumulator.clock.advance()
    assert (accumulator.calls_in_a_step, accumulator.stride) == (2, 2)
    assert held_bytes(accumulator) <= bound
    for step, metric in product((3, 4), METRICS):
        for name, (_, mean, _) in found(accumulator, step, metric).items():
            each = [expected(branch, step, metric, 2)[name] for branch in branches]
            np.testing.assert_allclose(mean, np.concatenate(each).mean(), rtol=1e-3, atol=1e-7)


def test_numbers_among_the_inputs_are_kept_for_one_call_a_step(structure: Structure):
    accumulator = make(structure, calls_per_step=2)
    feed(accumulator, values(0), values(1))
    assert [numbers["t"] for numbers in accumulator.inputs] == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_a_model_without_regions_or_another_model_is_refused(structure: Structure):
    nothing = soda_compile.inspect(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.raises(SensitivityError, match="no region was found"):
        ErrorAccumulator(Clock(automatic=True), CallCounter(1), ENTRIES, 1).start(nothing)
    accumulator = make(structure)
    with pytest.raises(Miss, match="where the first had"):
        accumulator.start(nothing)


def test_moments_are_those_of_all_samples_at_once():
    generator = np.random.default_rng(0)
    samples = generator.normal(5, 2, (12, 3, 4))
    samples[generator.random(samples.shape) < 0.3] = np.nan
    moments = Moments(3, 4)
    for part in np.split(samples, [1, 4, 5]):
        moments.add(part)
    np.testing.assert_array_equal(moments.count, (~np.isnan(samples)).sum(0))
    np.testing.assert_allclose(moments.mean, np.nanmean(samples, axis=0))
    np.testing.assert_allclose(moments.deviation / moments.count, np.nanvar(samples, axis=0))
