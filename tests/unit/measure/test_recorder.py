"""Errors of values made by hand, accumulated over steps, rows, streams and generations."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import soda_compile
from soda_compile.errors import SensitivityError
from soda_compile.ir.structure import Structure
from soda_compile.measure.gram import ErrorEntries
from soda_compile.measure.moments import Moments
from soda_compile.measure.recorder import Recorder
from soda_compile.plans.sensitivity_info import METRICS
from soda_compile.runtime.clock import Clock

ROWS, TOKENS, WIDTH, STEPS, INTERVAL = 2, 6, 4, 5, 2
ENTRIES = ErrorEntries(INTERVAL)


class Gated(nn.Module):
    """One region; the gate is an input of the block."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return h + gate * self.mlp(h)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return soda_compile.inspect(Gated(), torch.randn(ROWS, TOKENS, WIDTH), torch.randn(ROWS, 1, WIDTH))


def make(structure: Structure, calls_per_step: int = 1, memory_bytes: int = 2**20) -> Recorder:
    recorder = Recorder(Clock(automatic=True), calls_per_step, ENTRIES, memory_bytes)
    recorder.start(structure)
    return recorder


def values(seed: int) -> dict[str, Tensor]:
    """Cut, gate and carry of all steps of one stream of one generation."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(ROWS, TOKENS, WIDTH, generator=generator)
    walk = torch.randn(STEPS, ROWS, TOKENS, WIDTH, generator=generator).mul(0.4).cumsum(0)
    return {
        "cut": start + walk,
        "gate": torch.randn(STEPS, ROWS, 1, WIDTH, generator=generator),
        "carry": 1 + torch.rand(STEPS, ROWS, generator=generator),
    }


def feed(recorder: Recorder, *streams: dict[str, Tensor]) -> None:
    """One generation, step by step, the streams of a step one after the other."""
    recorder.clock.begin()
    assert recorder.structure is not None
    (region,) = recorder.structure.regions
    for step, stream in product(range(STEPS), streams):
        recorder.begin_call({"h": stream["cut"][step], "t": float(STEPS - step)})
        named = {region.cuts[0].node: stream["cut"][step], "gate": stream["gate"][step], "|h|": stream["carry"][step]}
        recorder.record(0, named)
        recorder.end_call()


def expected(stream: dict[str, Tensor], step: int, metric: str, stride: int = 1) -> dict[str, np.ndarray]:
    """Errors [rows] of reuse at ages 1 and 2 and of the forecast from ages 1 and 2, where they are defined."""
    cut = stream["cut"][:, :, ::stride].double().numpy()
    gate, carry = (stream[name][step].double().numpy() for name in ("gate", "carry"))
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


def found(recorder: Recorder, step: int, metric: str) -> dict[str, tuple[float, float, float]]:
    """Count, mean and variance by the names of ``expected``."""
    moments = recorder.moments[step, 0]
    row = METRICS.index(metric)
    variance = moments.deviation[row] / np.maximum(moments.count[row], 1)
    columns = [ENTRIES.split(array) for array in (moments.count[row], moments.mean[row], variance)]
    places = {"reuse 1": ("reuse", 0), "reuse 2": ("reuse", 1), "forecast1 1 1": ("forecast1", (0, 0))}
    entries = {
        name: tuple(float(column[operator][place]) for column in columns) for name, (operator, place) in places.items()
    }
    return {name: entry for name, entry in entries.items() if entry[0]}  # type: ignore[misc]


def check(recorder: Recorder, streams: list[dict[str, Tensor]], stride: int = 1) -> None:
    for step, metric in product(range(1, STEPS), METRICS):
        each = [expected(stream, step, metric, stride) for stream in streams]
        seen = found(recorder, step, metric)
        assert set(seen) == set(each[0])
        for name, (count, mean, variance) in seen.items():
            samples = np.concatenate([errors[name] for errors in each])
            assert count == len(samples)
            np.testing.assert_allclose([mean, variance], [samples.mean(), samples.var()], rtol=1e-3, atol=1e-7)


def test_mean_and_variance_over_rows_and_generations(structure: Structure):
    recorder, generations = make(structure), [values(seed) for seed in range(3)]
    for generation in generations:
        feed(recorder, generation)
    check(recorder, generations)
    assert recorder.samples == 3 * ROWS
    assert recorder.steps == STEPS
    assert (0, 0) not in recorder.moments


def test_streams_are_kept_apart(structure: Structure):
    recorder, streams = make(structure, calls_per_step=2), [values(0), values(1)]
    feed(recorder, *streams)
    check(recorder, streams)
    assert recorder.calls_in_a_step == 2
    assert recorder.steps == STEPS


def test_a_generation_starts_clean(structure: Structure):
    recorder = make(structure)
    feed(recorder, values(0))
    recorder.clock.begin()
    recorder.begin_call({"h": torch.zeros(ROWS, TOKENS, WIDTH)})
    before = {key: moments.count.copy() for key, moments in recorder.moments.items()}
    (region,) = structure.regions
    recorder.record(0, {region.cuts[0].node: torch.ones(ROWS, TOKENS, WIDTH)})
    assert all((before[key] == moments.count).all() for key, moments in recorder.moments.items())


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.5, 2), (0.34, 3)])
def test_tokens_are_left_out_where_memory_is_short(structure: Structure, share: float, stride: int):
    window = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    recorder, stream = make(structure, memory_bytes=int(window * share)), values(0)
    feed(recorder, stream)
    assert recorder.stride == stride
    check(recorder, [stream], stride)
    kept = sum(window.memory_bytes for window in recorder._windows.values())
    assert kept <= window * share


def test_memory_is_shared_by_the_streams(structure: Structure):
    window = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    recorder = make(structure, calls_per_step=2, memory_bytes=window)
    feed(recorder, values(0), values(1))
    assert recorder.stride == 2


def test_a_second_call_in_a_step_shares_the_memory_once_it_is_seen(structure: Structure):
    """Under a scheduler nobody says that there are two calls; from the second one on tokens are left out."""
    bound = ROWS * TOKENS * WIDTH * 4 * (ENTRIES.lags + 1)
    recorder = Recorder(Clock(automatic=False), 1, ENTRIES, bound)
    recorder.start(structure)
    streams = [values(0), values(1)]
    (region,) = structure.regions
    recorder.begin(seed=0)
    for step in range(STEPS):
        for stream in streams:
            recorder.begin_call({"h": stream["cut"][step]})
            named = {"gate": stream["gate"][step], "|h|": stream["carry"][step]}
            recorder.record(0, {region.cuts[0].node: stream["cut"][step], **named})
        recorder.clock.advance()
    assert (recorder.calls_in_a_step, recorder.stride) == (2, 2)
    assert sum(window.memory_bytes for window in recorder._windows.values()) <= bound
    for step, metric in product((3, 4), METRICS):
        for name, (_, mean, _) in found(recorder, step, metric).items():
            each = [expected(stream, step, metric, 2)[name] for stream in streams]
            np.testing.assert_allclose(mean, np.concatenate(each).mean(), rtol=1e-3, atol=1e-7)


def test_numbers_among_the_inputs_are_kept_for_one_call_a_step(structure: Structure):
    recorder = make(structure, calls_per_step=2)
    feed(recorder, values(0), values(1))
    assert [numbers["t"] for numbers in recorder.inputs] == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_a_model_without_regions_or_another_model_is_refused(structure: Structure):
    nothing = soda_compile.inspect(nn.Linear(4, 4), torch.randn(2, 4))
    with pytest.raises(SensitivityError, match="no region was found"):
        Recorder(Clock(automatic=True), 1, ENTRIES, 1).start(nothing)
    recorder = make(structure)
    with pytest.raises(SensitivityError, match="changed its structure"):
        recorder.start(nothing)


def test_moments_are_those_of_all_samples_at_once():
    generator = np.random.default_rng(0)
    samples = generator.normal(5, 2, (12, 3, 4))
    samples[generator.random(samples.shape) < 0.3] = np.nan
    moments = Moments.empty(3, 4)
    for part in np.split(samples, [1, 4, 5]):
        moments.add(part)
    np.testing.assert_array_equal(moments.count, (~np.isnan(samples)).sum(0))
    np.testing.assert_allclose(moments.mean, np.nanmean(samples, axis=0))
    np.testing.assert_allclose(moments.deviation / moments.count, np.nanvar(samples, axis=0))
