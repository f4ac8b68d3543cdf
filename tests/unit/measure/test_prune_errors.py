"""Errors of pruning against loops that put every pruned output together token by token, in float64."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Gated

from soda_compile.analysis.token_axes import carries_of, wanted_tokens
from soda_compile.errors import SensitivityError
from soda_compile.ir.structure import Structure
from soda_compile.measure.error_accumulator import ErrorAccumulator
from soda_compile.measure.gram import ErrorEntries
from soda_compile.measure.history import TokenGroup
from soda_compile.measure.inspection import inspect
from soda_compile.measure.prune_errors import kept_sums, pruned_products
from soda_compile.plans.actions import PRUNE_RATES, prune
from soda_compile.plans.pruning import SCORES
from soda_compile.plans.sensitivity_info import METRICS
from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock

ROWS, FRAMES, STEPS, INTERVAL, FEATURES = 2, 3, 5, 2, 4
Array = NDArray[np.float64]
attend = nn.functional.scaled_dot_product_attention


class Joint(nn.Module):
    """One region of two token groups, of 11 and 5 tokens; the second has no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(FEATURES, FEATURES)
        self.text = nn.Linear(FEATURES, FEATURES)

    def forward(self, h: Tensor, c: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([h, c], dim=1)
        seen = attend(tokens, tokens, tokens)
        return h + gate * self.image(seen[:, :11]), c + self.text(seen[:, 11:])


class OneCut(nn.Module):
    """The two token groups leave through one linear, and are ranked together."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(FEATURES, FEATURES)

    def forward(self, h: Tensor, c: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([h, c], dim=1)
        out = self.out(attend(tokens, tokens, tokens))
        return h + out[:, :11], c + out[:, 11:]


class Frames(Gated):
    """Frames of a video become samples for the region."""

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        return super().forward(h.flatten(0, 1), gate)


class Flat(nn.Module):
    """Its values have no batch, so that no axis is known to run over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h)


def gate(rows: int) -> Tensor:
    return torch.linspace(-2, 2, rows * FEATURES).reshape(rows, 1, FEATURES)


@cache
def structure_of(name: str) -> Structure:
    h, c = torch.randn(ROWS, 11, FEATURES), torch.randn(ROWS, 5, FEATURES)
    if name == "flat":
        return inspect(Flat(), h[0])
    if name == "gated":
        return inspect(Gated(), h, gate(ROWS))
    if name == "frames":
        return inspect(Frames(), h[:, None].repeat(1, FRAMES, 1, 1), gate(ROWS * FRAMES))
    return inspect({"joint": Joint, "one cut": OneCut}[name](), h, c, gate(ROWS))


@pytest.fixture(params=["gated", "frames", "joint", "one cut"])
def structure(request: pytest.FixtureRequest) -> Structure:
    return structure_of(request.param)


def make(structure: Structure, scores: tuple[str, ...], memory_bytes: int = 2**20) -> ErrorAccumulator:
    accumulator = ErrorAccumulator(Clock(automatic=True), CallCounter(1), ErrorEntries(INTERVAL), memory_bytes, scores)
    accumulator.start(structure)
    return accumulator


def walk(*shape: int, seed: int) -> Tensor:
    """A value at every step, [STEPS, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator)
    return start + torch.randn(STEPS, *shape, generator=generator).mul(0.4).cumsum(0)


def trajectory(structure: Structure, seed: int) -> dict[str, Tensor]:
    """Made-up values of cuts, carries and gates at every step, by the names under which they are observed."""
    (call,) = structure.calls
    (region,) = structure.regions
    carries = carries_of(call.block.module.graph, region) or ()
    values = {cut.node: walk(*cut.shape, seed=100 * seed + place) for place, cut in enumerate(region.cuts)}
    for place, node in enumerate(carries):
        values[node.name] = walk(*node.meta["val"].shape, seed=100 * seed + 50 + place)
    batch = region.cuts[0].shape[0]
    for name in region.carries:
        values[f"|{name}|"] = 1 + torch.rand(STEPS, batch, generator=torch.Generator().manual_seed(seed))
    return {**values, "gate": gate(batch).expand(STEPS, batch, 1, FEATURES)}


def feed(accumulator: ErrorAccumulator, values: dict[str, Tensor], seed: int = 0) -> None:
    accumulator.begin(seed)
    for step in range(STEPS):
        accumulator.begin_call({"h": torch.zeros(ROWS, 3)})
        accumulator.record(0, {name: value[step] for name, value in values.items()})


def mix(now: Array, before: Array, score: Array, rate: float) -> Array:
    """The output [tokens, features] of which the tokens of lowest score are old."""
    mixed = now.copy()
    for token in sorted(range(len(score)), key=lambda token: score[token])[: math.floor(rate * len(score))]:
        mixed[token] = before[token]
    return mixed


def score_of(name: str, now: Array, before: Array) -> Array:
    if name == "feature_mean":
        return np.array([sum(token) / len(token) for token in now])
    assert name == "drift"
    return np.array([math.sqrt(sum((a - b) ** 2)) for a, b in zip(now, before, strict=True)])


def expected(
    structure: Structure, values: dict[str, Tensor], name: str, step: int, age: int, rate: float, stride: int = 1
) -> dict[str, Array]:
    """Errors [rows] by metric, from the whole pruned outputs."""
    (call,) = structure.calls
    (region,) = structure.regions
    carries = carries_of(call.block.module.graph, region)
    assert carries is not None
    groups = region.cuts[0].shape[0] // ROWS
    errors: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for row in range(ROWS):
        fresh, mixed, weights = [], [], []
        for number, (cut, carry) in enumerate(zip(region.cuts, carries, strict=True)):
            gated = cut.shape[1] == 11
            pruned = wanted_tokens(region, number, prune(0.875)) < cut.shape[1]
            for sample in range(row * groups, (row + 1) * groups):
                now, before = (values[cut.node][at, sample, ::stride].double().numpy() for at in (step, step - age))
                group = [values[carry.name][at, sample, ::stride].double().numpy() for at in (step, step - age)]
                fresh.append(now)
                mixed.append(mix(now, before, score_of(name, *group), rate) if pruned else now)
                factor = values["gate"][step, sample].double().numpy() if gated else np.ones((1, FEATURES))
                weights.append(np.broadcast_to(factor, now.shape))
        a, b, w = (np.concatenate(parts).flatten() for parts in (fresh, mixed, weights))
        total = sum(values[f"|{name}|"][step, row * groups : (row + 1) * groups].sum() for name in region.carries)
        share = a.size * ROWS / sum(math.prod(cut.shape) for cut in region.cuts)
        errors["cosine"].append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        errors["relative"].append(np.linalg.norm(b - a) / np.linalg.norm(a))
        errors["residual"].append(np.linalg.norm(w * (b - a)) / math.sqrt(float(total) * share))
    return {metric: np.array(each) for metric, each in errors.items()}


def held_bytes(accumulator: ErrorAccumulator) -> int:
    """Size of all past values that are kept."""
    return sum(
        value.nbytes
        for history in accumulator.histories.values()
        for step in (*history.cuts, *history.carries)
        for value in step
    )


def check(
    accumulator: ErrorAccumulator, structure: Structure, all_values: Sequence[dict[str, Tensor]], stride: int = 1
) -> None:
    """Mean and variance over rows and generations of every entry, against the loops."""
    for step, name in product(range(1, STEPS), accumulator.prune_scores):
        moments = accumulator.moments[step, 0]
        found = [
            accumulator.split(array)[f"prune.{name}"] for array in (moments.count, moments.mean, moments.deviation)
        ]
        for age in range(1, INTERVAL + 1):
            if age > step:
                assert (found[0][:, age - 1] == 0).all()
                continue
            for place, rate in enumerate(PRUNE_RATES):
                each = [expected(structure, values, name, step, age, rate, stride) for values in all_values]
                for metric, (count, mean, deviation) in zip(
                    METRICS, zip(*(array[:, age - 1, place] for array in found), strict=True), strict=True
                ):
                    samples = np.concatenate([errors[metric] for errors in each])
                    assert count == len(samples)
                    wanted = [samples.mean(), samples.var()]
                    np.testing.assert_allclose([mean, deviation / count], wanted, rtol=1e-3, atol=1e-7)


def test_every_rate_age_and_metric_is_that_of_the_output_put_together(structure: Structure):
    accumulator = make(structure, ("feature_mean", "drift"))
    generations = [trajectory(structure, seed) for seed in range(2)]
    for seed, values in enumerate(generations):
        feed(accumulator, values, seed)
    check(accumulator, structure, generations)


def test_the_short_token_group_of_joint_attention_stays_whole():
    """Where only the text moves, reuse is wrong and pruning is not."""
    structure = structure_of("joint")
    text = structure.regions[0].cuts[1]
    assert text.shape[1] == 5
    values = trajectory(structure, 0)
    values = {name: value[:1].expand_as(value) if name != text.node else value for name, value in values.items()}
    accumulator = make(structure, SCORES)
    feed(accumulator, values)
    tables = accumulator.split(accumulator.moments[4, 0].mean)
    assert (tables["reuse"][1] > 0).all()  # relative
    assert all((tables[f"prune.{score}"][1] == 0).all() for score in SCORES)


def test_the_random_score_ranks_by_draws_that_the_seed_of_the_generation_gives():
    groups = [group(tokens=9, seed=0), group(tokens=6, seed=1)]
    found = pruned_products(groups, ("random",), 2, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    scores = [torch.rand(value.past.shape[:-1], generator=draws) for value in groups]
    for lag, row, (place, rate) in product(range(2), range(ROWS), enumerate(PRUNE_RATES)):
        change = 0.0
        for value, score in zip(groups, scores, strict=True):
            now, before = value.present[row, 0].double().numpy(), value.past[lag, row, 0].double().numpy()
            change += ((mix(now, before, score[lag, row, 0].numpy(), rate) - now) ** 2).sum()
        np.testing.assert_allclose(found[0, row, 0, lag, place], change, rtol=1e-5)
    structure = structure_of("gated")
    accumulators = [make(structure, ("random",)) for _ in range(3)]
    for accumulator, seed in zip(accumulators, (1, 1, 2), strict=True):
        feed(accumulator, trajectory(structure, 0), seed)
    same, again, other = ([each.mean for each in accumulator.moments.values()] for accumulator in accumulators)
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def group(tokens: int, seed: int) -> TokenGroup:
    cut = walk(ROWS, 1, tokens, FEATURES, seed=seed)
    return TokenGroup(cut[0], cut[1:3], carry=cut[0], past_carry=cut[1:3])


def test_random_tokens_hold_their_share_of_the_change():
    value = group(tokens=4000, seed=0)
    products = pruned_products([value], ("random",), 2, torch.Generator().manual_seed(0))
    whole = (value.past - value.present).square().sum((2, 3, 4)).T
    for place, rate in enumerate(PRUNE_RATES):
        np.testing.assert_allclose(products[0, :, 0, :, place], rate * whole, rtol=0.1)


def test_drift_keeps_the_tokens_that_moved_least():
    """Where the output changes as the input does, no other choice leaves less error."""
    value = group(tokens=50, seed=0)
    squares = pruned_products([value], ("drift", "feature_mean", "random"), 2, torch.Generator())[0]
    drift, mean, random = squares.unbind(1)
    assert (drift < mean).all()
    assert (drift < random).all()


def test_few_tokens_keep_what_the_rate_rounds_down_to():
    values = torch.tensor([[4.0, 2.0, 1.0]])
    sums = kept_sums(values, torch.tensor([[3.0, 2.0, 1.0]]))
    kept = [math.floor(rate * 3) for rate in PRUNE_RATES]
    assert kept == [0, 0, 1, 1, 1, 2, 2]
    assert sums.tolist() == [[[0.0, 1.0, 3.0][count] for count in kept]]


def test_a_region_without_a_token_axis_has_no_error_of_pruning():
    structure = structure_of("flat")
    accumulator = make(structure, SCORES)
    feed(accumulator, trajectory(structure, 0))
    tables = accumulator.split(accumulator.moments[4, 0].count)
    assert {key for key, count in tables.items() if not count.any()} == {f"prune.{score}" for score in SCORES}


def test_nothing_is_asked_for_or_kept_that_is_not_measured():
    structure = structure_of("gated")
    values = trajectory(structure, 0)
    sizes = {}
    for scores in [(), ("random",), ("feature_mean",), ("drift",)]:
        accumulator = make(structure, scores)
        feed(accumulator, values)
        sizes[scores] = held_bytes(accumulator)
        assert accumulator.wants_carries == bool(scores)
    cut = ROWS * 11 * FEATURES * 4
    assert sizes == {
        (): 4 * cut,
        ("random",): 4 * cut,
        ("feature_mean",): 4 * cut,
        ("drift",): 4 * cut + INTERVAL * cut,
    }


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.99, 2), (0.5, 3), (0.3, 4)])
def test_carries_share_the_memory_and_are_thinned_with_the_cuts(share: float, stride: int):
    """11 tokens: every second leaves 6, every third 4, every fourth 3."""
    structure = structure_of("gated")
    cut = ROWS * 11 * FEATURES * 4
    bound = int(share * (cut * (2 * INTERVAL + 1) + cut * (INTERVAL + 1)))
    accumulator, values = make(structure, ("feature_mean", "drift"), bound), trajectory(structure, 0)
    feed(accumulator, values)
    assert accumulator.stride == stride
    assert held_bytes(accumulator) <= bound
    check(accumulator, structure, [values], stride)


def test_memory_that_one_token_of_each_region_exceeds_is_an_error():
    accumulator = make(structure_of("gated"), ("drift",), memory_bytes=100)
    accumulator.begin(0)
    with pytest.raises(
        SensitivityError, match="memory_bytes is 100, but past values of one token of each region take 256"
    ):
        accumulator.begin_call({"h": torch.zeros(ROWS, 3)})
